"""MMBench in Chinese: the same table and the same file to hand in (mmbench.py), asked for the letter in Chinese.

python -m fitprune.evaluation.loader_choices mmbench --lang cn --question-file mmbench_dev_cn_20231003.tsv
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from ..benchmark import Result
from . import mmbench

QUESTIONS = "mmbench_dev_cn_20231003.tsv"


def score(data: Path, answers: Path, out: Path) -> Result:
    """Writes the xlsx file for the server to `out`."""
    return mmbench.submission(data / QUESTIONS, answers, out / f"{answers.stem}.xlsx")


BENCHMARK = replace(
    mmbench.BENCHMARK,
    name="mmbench_cn",
    title="MMBench-CN",
    folder="mmbench_cn",
    questions=QUESTIONS,
    score=score,
    read=partial(mmbench.read, lang="cn"),
)
