"""What a pruned prefill kept: read it after the forward, for checks, drawings and statistics.

Survivors stay on the device until somebody reads them, so tracing costs a forward nothing.

    with fitprune.prune(model, recipe) as trace:
        model.generate(**inputs)
    print(trace)
"""

from __future__ import annotations

import torch
from torch import Tensor

from .kernels.select import ALIVE

Steps = list[tuple[Tensor | None, Tensor | None]]


class Trace:
    """Survivors of the last prefill that brought visual tokens; empty before the first.

    `alive[layer][row]` is a LongTensor of the positions alive after that layer: positions in the sequence as the model
    got it (text before the image included, padding excluded, earlier turns counted), ascending. Rows are those of the
    forward, so beams have a row each. Text is always alive; `visual[layer][row]` has the image's positions only.
    """

    def __init__(self) -> None:
        self.clear(0, None, None)

    def clear(self, past: int, status: Tensor | None, group: Tensor | None) -> Steps:
        """Starts anew for a prefill after `past` tokens; status and group [B, n] as in `PrefillState`, on the CPU.

        Returns:
            The list that this prefill appends (columns, status) to after each layer, references only; None means as
            before any cut. It is the prefill's own, so that another one that begins meanwhile is not mixed into it.
        """
        steps: Steps = []
        self._past, self._status, self._group, self._steps = past, status, group, steps
        return steps

    def __len__(self) -> int:
        """Number of decoder layers recorded."""
        return len(self._steps)

    @property
    def alive(self) -> list[list[Tensor]]:
        """Positions alive after each layer, per row."""
        return [[row + self._past for row in rows] for rows in self._columns()]

    @property
    def visual(self) -> list[list[Tensor]]:
        """Positions of visual tokens alive after each layer, per row."""
        if self._group is None:
            return []
        return [[row[group[row] > 0] + self._past for row, group in zip(rows, self._group, strict=True)] for rows in self._columns()]

    @property
    def visual_tokens(self) -> list[int]:
        """Number of visual tokens of each row before pruning."""
        return [] if self._group is None else (self._group > 0).sum(1).tolist()

    @property
    def positions(self) -> Tensor:
        """[B, m] the position that each column of the model's output stands for, -1 where it is padding or a pad slot.

        Rows that keep different numbers of tokens are filled up, so with right padding the last column of a row need
        not be its last token: `trace.positions[row].argmax()` is the column of the last token.
        """
        if self._status is None:
            return torch.empty(0, 0, dtype=torch.long)
        where, alive = self._carried(*(self._steps[-1] if self._steps else (None, None)))
        return torch.where(alive, where + self._past, -1)

    @property
    def images(self) -> list[list[tuple[int, int]]]:
        """Where each row's images were before pruning: first position and one past the last, image by image."""
        return [[(int(place[0]), int(place[-1]) + 1) for place in row] for row in self.image_tokens]

    @property
    def image_tokens(self) -> list[list[Tensor]]:
        """Positions of each image's visual tokens before pruning, row by row; what stands between them is not listed."""
        if self._group is None:
            return []
        found = []
        for group in self._group:
            places = [(group == number).nonzero().flatten() + self._past for number in range(1, int(group.max()) + 1)]
            found.append([place for place in places if len(place)])
        return found

    def _columns(self) -> list[list[Tensor]]:
        carried = (self._carried(columns, status) for columns, status in self._steps)
        return [[row[kept] for row, kept in zip(where, alive, strict=True)] for where, alive in carried]

    def _carried(self, columns: Tensor | None, status: Tensor | None) -> tuple[Tensor, Tensor]:
        """Columns carried after a step, and which of them are alive, both [B, m] on the CPU."""
        here = self._status if status is None else status.cpu()
        assert here is not None
        where = torch.arange(here.shape[1]).expand_as(here) if columns is None else columns.cpu()
        return where, here == ALIVE

    def __str__(self) -> str:
        if not self._steps:
            return "Trace: no prefill with visual tokens yet"
        start = self.visual_tokens
        lines = [f"Trace of {len(start)} row(s), visual tokens before pruning: {', '.join(map(str, start))}"]
        for layer, rows in enumerate(self.visual):
            lines.append(f"after layer {layer:3d}: {', '.join(str(len(row)) for row in rows)}")
        return "\n".join(lines)
