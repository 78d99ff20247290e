"""MMBench in Chinese: the same table and the same file to hand in (mmbench.py), asked for the letter in Chinese.

python -m fitprune.evaluation.loader_choices mmbench --lang cn --question-file mmbench_dev_cn_20231003.tsv
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from . import mmbench

QUESTIONS = "mmbench_dev_cn_20231003.tsv"

BENCHMARK = replace(
    mmbench.BENCHMARK, name="mmbench_cn", title="MMBench-CN", folder="mmbench_cn", questions=QUESTIONS,
    score=partial(mmbench.score, questions=QUESTIONS), read=partial(mmbench.read, lang="cn"),
)  # fmt: skip
