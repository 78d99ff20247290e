"""`fitprune demo`: a page on this machine that answers a question about an image dense and pruned, side by side.

    engine.py      a loaded model and its recipes → both replies with their figures; no web in it
    figures.py     those figures as HTML: the table, and the image after every layer
    page.py        the page (Gradio): what is on it and what happens on a click
    server.py      what serves it: closed routes, bounded requests
    uploads.py     the folder of uploaded images: swept, and bounded

Needs Gradio (`pip install 'fitprune[demo]'`). Left out: chats of several turns, several images in a question, sampling,
accounts, and any way to publish the page.

    fitprune demo
"""
