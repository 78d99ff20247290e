"""Asking a model a benchmark's questions, keeping its answers, scoring them.

Why a package: the files between the steps (questions.jsonl → answers.jsonl → score) are the ones that the LLaVA family
of projects already uses, so a model answered here can be scored there and the other way round. One module per step:

    answer.py      questions → answers file, with a model that is pruned or not
    answers.py     the answers file, written as the answers come and resumed after an interruption
    chunks.py      the answers of processes that were started one by one, joined
    benchmark.py   what a benchmark is; benchmarks/ has them, one file each
    compare.py     dense and pruned runs of one benchmark, in a table
    loader.py, loader_choices.py     the authors' answering scripts
    scoring.py, normalise.py         what scores are made of

Scoring needs no model, only the files.

    python -m fitprune.evaluation.benchmarks.textvqa --annotation-file TextVQA_0.5.1_val.json --result-file answers.jsonl
"""
