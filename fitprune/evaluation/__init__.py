"""Asking a model a benchmark's questions, keeping its answers, scoring them.

Why a package: the files between the steps (questions.jsonl → answers.jsonl → score) are the ones that the LLaVA family
of projects already uses, so a model answered here can be scored there and the other way round. One module per step:

    questions.py   reading a question file, cutting it into chunks for several processes
    answers.py     the answers file, written as the answers come and resumed after an interruption
    normalise.py   the spelling of an answer that TextVQA and VQAv2 compare
    textvqa.py     the TextVQA score, and the script `eval_textvqa` around it

Nothing here imports torch or a model. Left out: running the model (the command line does), and benchmarks whose scores
come from a server or another project's tool. A further benchmark is one more file here.

    python -m fitprune.evaluation.textvqa --annotation-file TextVQA_0.5.1_val.json --result-file answers.jsonl
"""
