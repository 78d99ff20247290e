"""Training batches: the picture of a number, what its patches show, and the questions of many slots in one sequence.

A batch is a pure function of (phase, step, rank): nothing is shuffled or stored, so a run that was interrupted goes on
with the very pictures that it would have had. No picture is ever shown twice; every training figure is one on unseen data.

    python -c "from embedded.batches import *; print(answering(0, 2)['ids'].shape)"
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from .network import PATCH
from .questions import FAMILIES, READING, Question, ask
from .render import render
from .scene import SIDE, Draw, Scene, draw, stream
from .targets import targets
from .tokens import VICUNA, Prompts

SLOTS = 14  # questions per picture
READ = 5  # of which about strings
OTHERS = {
    "relation": 5, "position-yn": 4, "count": 4, "count-yn": 3, "ocr-yn": 4, "string-yn": 2, "color": 2, "shape": 2, "exist": 2,
    "choose": 1, "verify": 1, "existence-yn": 1, "color-yn": 1,
}  # how often the other families are asked, against each other  # fmt: skip
Batch = dict[str, Tensor]
Look = Callable[[list[Scene]], Batch]  # scenes → what a model sees of them, and what their patches show


def plain_pictures(scenes: list[Scene]) -> Batch:
    """Pictures as they are, and what their patches show: pixels [B, 3, SIDE, SIDE], targets [B, heads, n]."""
    return {
        "pixels": pixels(np.stack([np.asarray(render(scene)) for scene in scenes])),
        "targets": torch.from_numpy(np.stack([targets(scene, SIDE // PATCH) for scene in scenes])),
    }


def seeing(start: int, count: int, look: Look = plain_pictures, draw: Draw = draw) -> Batch:
    """Pictures full of strings, and what their patches show."""
    return look([draw("dense", start + at) for at in range(count)])


def answering(start: int, count: int, look: Look = plain_pictures, prompts: Prompts = VICUNA, draw: Draw = draw) -> Batch:
    """Pictures, what their patches show, and `SLOTS` questions each.

    ids, slot, answer: [B, T] as in `network.Embedded.answer_loss`; family [B, SLOTS]: place in `FAMILIES`.
    """
    scenes = [draw("train", start + at) for at in range(count)]
    asked = [questions(scene) for scene in scenes]
    rows = [_pack(of_scene, stream(scene.split, scene.index, 4), prompts) for scene, of_scene in zip(scenes, asked, strict=True)]
    longest = max(len(row) for row in rows)
    table = np.zeros((count, longest, 3), dtype=np.int64)
    table[:, :, 0] = prompts.pad
    for at, row in enumerate(rows):
        table[at, : len(row)] = row
    ids, slot, answer = torch.from_numpy(table).unbind(-1)
    names = list(FAMILIES)
    family = torch.tensor([[names.index(question.family) for question in of_scene] for of_scene in asked])
    return {**look(scenes), "ids": ids, "slot": slot, "answer": answer.bool(), "family": family}


def questions(scene: Scene) -> list[Question]:
    """`SLOTS` questions about a scene, `READ` of them about strings; repeats happen."""
    random = stream(scene.split, scene.index, purpose=3)
    chances = np.array(list(OTHERS.values())) / sum(OTHERS.values())
    found: list[Question] = []
    while len(found) < SLOTS:
        family = READING[random.randint(3)] if len(found) < READ else list(OTHERS)[random.choice(len(chances), p=chances)]
        question = ask(scene, family, random)
        found += [question] if question else []
    return found


def _pack(asked: list[Question], random: np.random.RandomState, prompts: Prompts) -> list[tuple[int, int, bool]]:
    """(token, slot, whether it is answer) of all questions; half of them carry LLaVA's instruction line."""
    row = []
    for slot, question in enumerate(asked, start=1):
        row += [(token, slot, False) for token in prompts.question(question.text, bool(random.randint(2)))]
        row += [(token, slot, True) for token in prompts.answer(question.answer)]
    return row


def pixels(pictures: np.ndarray) -> Tensor:
    """uint8 [B, SIDE, SIDE, 3] → what the vision tower takes, [B, 3, SIDE, SIDE], with CLIP's mean and deviation."""
    scaled = torch.from_numpy(pictures).float().div(255)
    return ((scaled - torch.tensor(OPENAI_CLIP_MEAN)) / torch.tensor(OPENAI_CLIP_STD)).permute(0, 3, 1, 2).contiguous()


class _Steps(Dataset[Batch]):
    def __init__(self, make: Any, first: int, last: int, count: int, ranks: int, rank: int) -> None:
        self.make, self.first, self.last, self.count, self.ranks, self.rank = make, first, last, count, ranks, rank

    def __len__(self) -> int:
        return self.last - self.first

    def __getitem__(self, at: int) -> Batch:
        return self.make(((self.first + at) * self.ranks + self.rank) * self.count, self.count)


def stream_of(
    phase: str, first: int, last: int, count: int, rank: int, ranks: int, workers: int,
    look: Look = plain_pictures, prompts: Prompts = VICUNA, draw: Draw = draw,
) -> Iterator[Batch]:  # fmt: skip
    """The batches of steps first … last - 1 of a phase ("see" or "answer") for one rank, `count` pictures each."""
    make: Callable[..., Batch] = partial(seeing, look=look, draw=draw)
    if phase != "see":
        make = partial(answering, look=look, prompts=prompts, draw=draw)
    yield from DataLoader(_Steps(make, first, last, count, ranks, rank), batch_size=None, num_workers=workers)
