"""MMBench-CN in miniature: some of MMBench's questions (mmbench.py) and their choices in Chinese.

The embedded models know no Chinese: this is for walking through the steps, not for an answer.

    python -c "from embedded.benchmarks import mmbench_cn; print(list(mmbench_cn.build(1)))"
"""

from __future__ import annotations

import re

from ..scene import Draw, draw
from .encode import Files
from .mmbench import table

QUESTIONS = "mmbench_dev_cn_20231003.tsv"
WORDS = {
    **{"circle": "圆形", "square": "正方形", "triangle": "三角形", "diamond": "菱形", "star": "星形", "cross": "十字形"},
    **{"red": "红色", "green": "绿色", "blue": "蓝色", "yellow": "黄色"},
    **{"orange": "橙色", "purple": "紫色", "cyan": "青色", "pink": "粉色"},
}
COLOR = re.compile(r"What color is the (\w+)\?")


def build(pictures: int = 4, draw: Draw = draw) -> Files:
    """The table, about those of so many pictures that have a shape with a kind of its own."""
    return {QUESTIONS: table(pictures, say, ("color",), draw)}


def say(text: str) -> str:
    """A question about a colour, or an answer to it, in Chinese."""
    asked = COLOR.fullmatch(text)
    return f"图中的{WORDS[asked[1]]}是什么颜色？" if asked else WORDS[text]
