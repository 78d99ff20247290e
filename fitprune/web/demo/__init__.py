"""`fitprune demo`: a page on this machine that answers a question about a picture dense and pruned, side by side.

    engine.py      a loaded model and its recipes → both answers with their figures; no web in it
    figures.py     those figures as HTML: the table, and the picture after every layer
    page.py        the page (Gradio): what is on it and what happens on a click
    server.py      what serves it: closed routes, bounded requests
    uploads.py     the folder of uploaded pictures: swept, and bounded
    command.py     the command's options, and how it starts and stops

Needs Gradio, which `pip install 'fitprune[demo]'` brings. Left out: chats of several turns, several pictures in a question,
sampling, accounts, and any way to publish the page: `fitprune demo` is for one machine.

    fitprune demo
"""
