"""Answers files for scorers: the embedded questions with chosen answers."""

import json

from fitprune.embedded import embedded

QUICK = ["--reduction_ratio", "60", "--samples", "4", "--max_new_tokens", "4", "--device", "cpu"]  # of answering scripts


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def answer(question_id, text, prompt=""):
    return {"question_id": question_id, "prompt": prompt, "text": text, "answer_id": "x", "model_id": "m", "metadata": {}}


def write_lines(path, entries):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
    return path


def answered(path, questions, texts):
    """An answers file to lines of a question file, one text each."""
    return write_lines(path, [answer(q["question_id"], text, q["text"]) for q, text in zip(questions, texts, strict=True)])


def embedded_folder(name):
    return embedded().data / name
