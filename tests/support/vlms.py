"""Tiny vision-language models of many classes of transformers, inputs for them, and where their visual tokens truly are.

Everything is made from a config: no network, no processor. A `Family` builds a model and writes prompts as the class's own
processor would, with every field that the model's forward needs; it notes, as it writes, which positions are an image's or a
video's, so the ground truth is no search for token ids. Models have few, small layers, and weights sharp enough that scores
of neighbouring ranks differ by more than floating-point noise.

    family = vlms.available()["Qwen2_5_VL"]
    model = family.model()
    inputs = family.inputs([[4, "image", 5], [2, "image", "image", 3]], padding="left")
    model(**inputs.call).logits
    inputs.visuals[1][0].tokens        # positions of the second row's first image

The families are in vlm_native.py (native resolutions), vlm_tiles.py (one size, or tiles), vlm_lines.py (tiles, line by line) and
vlm_more.py; the oracle is in oracle.py.

    pytest tests/decoder/test_vlm_support.py
"""

from __future__ import annotations

import inspect
import itertools
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

Part = int | str  # so many text tokens, "image" or "video"
Row = Sequence[Part]

LAYERS, HIDDEN, HEADS, KEY_HEADS, HEAD_DIM = 4, 64, 4, 2, 16
VOCAB, PAD, BOS, TEXT = 128, 0, 1, (3, 100)  # text tokens are drawn from TEXT
SPECIAL = [PAD, BOS, 2, *range(TEXT[1], VOCAB)]  # `suppress_tokens` for generate: what no text would bring
IMAGE, VIDEO, START, END, BREAK, MARK = 120, 121, 122, 123, 124, 110  # MARK and those after it: rows, columns, timestamps

TEXT_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "intermediate_size": 80,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KEY_HEADS,
    "head_dim": HEAD_DIM,
    "max_position_embeddings": 1024,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": None,
    "tie_word_embeddings": False,
}
NO_HEAD_DIM = {name: value for name, value in TEXT_SIZES.items() if name != "head_dim"}
TOWER: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 4}


@dataclass
class Visual:
    """One image or video of a row.

    tokens: [n] positions of its visual tokens. frame: positions of other tokens between its first and its last visual
    token: row breaks, tile marks, timestamps. They are no text that asks.
    """

    kind: str
    tokens: Tensor
    frame: Tensor

    @property
    def runs(self) -> list[tuple[int, int]]:
        """Stretches of adjacent positions: first and one past the last."""
        edges = [0, *((self.tokens.diff() > 1).nonzero().flatten() + 1).tolist(), len(self.tokens)]
        return [(int(self.tokens[a]), int(self.tokens[b - 1]) + 1) for a, b in itertools.pairwise(edges)]


@dataclass
class Inputs:
    """What a model's forward is called with, and the truth about it: per row its images and videos, in order.

    real: [B, S] bool, False at padding.
    """

    call: dict[str, Any]
    visuals: list[list[Visual]]
    real: Tensor

    @property
    def visual(self) -> Tensor:
        """[B, S] bool, True at visual tokens: what `visual_mask=` takes."""
        return self._marked("tokens")

    @property
    def asks(self) -> Tensor:
        """[B, S] bool, True at text that asks: real, not visual, and not within an image or video."""
        return self.real & ~self._marked("tokens") & ~self._marked("frame")

    def _marked(self, name: str) -> Tensor:
        mask = torch.zeros_like(self.real)
        for row, visuals in zip(mask, self.visuals, strict=True):
            for one in visuals:
                row[getattr(one, name)] = True
        return mask

    def positioned(self) -> Inputs:
        """With `position_ids` that leave padding out, as `generate` makes them."""
        places = (self.real.cumsum(1) - 1).clamp(min=0)
        return Inputs({**self.call, "position_ids": places}, self.visuals, self.real, self.generated_type)

    def continued(self, new: Tensor) -> Inputs:
        """The same prompt (padded on the left, or not at all) with text tokens [B, m] behind it, as after `generate`."""
        call = dict(self.call)
        call["input_ids"] = torch.cat([call["input_ids"], new], 1)
        for name, value in {
            "attention_mask": 1,
            "mm_token_type_ids": 0,
            "moe_mm_token_type_ids": 0,
            "token_type_ids": self.generated_type,
        }.items():
            if name in call:
                call[name] = torch.cat([call[name], torch.full_like(new, value)], 1)
        return Inputs(call, self.visuals, torch.cat([self.real, torch.ones_like(new, dtype=torch.bool)], 1), self.generated_type)

    generated_type: int = 0
    """What `token_type_ids` say of generated tokens."""


@dataclass
class Draft:
    """A row being written. `shown` counts its images and videos so far, `coming` the images that it will have."""

    generator: torch.Generator
    coming: int = 0
    ids: list[int] = field(default_factory=list)
    visuals: list[tuple[str, list[int]]] = field(default_factory=list)
    fields: dict[str, list[Tensor]] = field(default_factory=dict)
    shown: int = -1

    def text(self, count: int) -> None:
        self.ids += torch.randint(*TEXT, (count,), generator=self.generator).tolist()

    def special(self, *ids: int) -> None:
        self.ids += ids

    def visual(self, count: int, token: int = IMAGE) -> None:
        """Visual tokens of the image or video that is being written."""
        self.visuals[-1][1].extend(range(len(self.ids), len(self.ids) + count))
        self.ids += [token] * count

    def pixels(self, *shape: int, name: str = "pixel_values") -> None:
        self.give(name, torch.randn(*shape, generator=self.generator))

    def give(self, name: str, value: Tensor) -> None:
        self.fields.setdefault(name, []).append(value)

    def done(self, shift: int) -> list[Visual]:
        found = []
        for kind, tokens in self.visuals:
            frame = sorted(set(range(tokens[0], tokens[-1])) - set(tokens))
            found.append(Visual(kind, torch.tensor(tokens) + shift, torch.tensor(frame, dtype=torch.long) + shift))
        return found


class Family:
    """One class of models: how to build one, and how its processor writes prompts."""

    needs: str
    """The class in `transformers` without which the family is not available."""
    since = (5, 0)
    """The first version of transformers (of those that we run on) whose own model runs."""
    videos = False
    mixes = True
    """Whether images and videos may stand in one batch."""
    types: str | None = None
    """The name of the input that says what each token is, if the processor makes one."""
    image_type, generated_type = 1, 0
    absolute = False
    """Whether `forward` counts padding as positions and something depends on them other than by distance."""
    both_ways = False
    """Whether text sees what comes after it."""
    shows_maps = True
    """Whether the model runs with `output_attentions`, and without it afterwards."""
    masked = False
    """Whether the model places images only if it is given an attention mask."""
    recurrent: tuple[int, ...] = ()
    """Layers that cannot delete: linear attention."""
    norms = 0.6
    """What is added to the weights of norms of queries and keys: attention is sharper for it."""

    def build(self) -> Any:
        """A model from its config, as initialised."""
        raise NotImplementedError

    def image(self, draft: Draft) -> None:
        """Writes the next image of a row; even and odd ones have other sizes, where the class knows sizes."""
        raise NotImplementedError

    def video(self, draft: Draft) -> None:
        raise NotImplementedError

    def fields(self, drafts: list[Draft]) -> dict[str, Tensor]:
        """The inputs beside ids and masks, for all rows: by default what the rows gave, one after the other."""
        names = dict.fromkeys(name for draft in drafts for name in draft.fields)
        return {name: torch.cat([one for draft in drafts for one in draft.fields.get(name, [])]) for name in names}

    @cache  # noqa: B019 (families live as long as the process)
    def model(self) -> Any:
        """The tiny model, built once, in float32 and eval mode."""
        torch.manual_seed(0)
        return sharpen(self.build().float(), self.norms)

    def takes(self, name: str) -> bool:
        """Whether the model's forward has an argument; some came after transformers 5.0."""
        return name in inspect.signature(type(self.model()).forward).parameters

    def draft(self, row: Row) -> Draft:
        draft = Draft(torch.Generator().manual_seed(zlib.crc32(repr(list(row)).encode())), sum(part == "image" for part in row))
        for part in row:
            if isinstance(part, int):
                draft.text(part)
            else:
                draft.visuals.append((part, []))
                draft.shown += 1
                (self.image if part == "image" else self.video)(draft)
        return draft

    def inputs(self, rows: Sequence[Row], padding: str | None = None) -> Inputs:
        """Inputs of a batch. A row is the same wherever it stands: its content depends on its parts alone.

        Args:
            rows: Each a list of parts: so many text tokens, "image" or "video".
            padding: "left" or "right"; None for rows of one length, without an attention mask.
        """
        drafts = [self.draft(row) for row in rows]
        width = max(len(draft.ids) for draft in drafts)
        assert padding or all(len(draft.ids) == width for draft in drafts), "rows of unlike lengths need padding"
        ids, real = torch.full((len(rows), width), PAD), torch.zeros(len(rows), width, dtype=torch.bool)
        types, visuals = torch.zeros_like(ids), []
        for at, draft in enumerate(drafts):
            shift = width - len(draft.ids) if padding == "left" else 0
            ids[at, shift : shift + len(draft.ids)] = torch.tensor(draft.ids)
            real[at, shift : shift + len(draft.ids)] = True
            visuals.append(draft.done(shift))
            for one in visuals[-1]:
                types[at, one.tokens] = (2 if one.kind == "video" else 1) * self.image_type
        call: dict[str, Any] = {"input_ids": ids}
        if padding or self.masked:
            call["attention_mask"] = real.long()
        if self.types and self.takes(self.types):
            call[self.types] = types
        return Inputs({**call, **self.fields(drafts)}, visuals, real, self.generated_type)


def sharpen(model: nn.Module, norms: float, seed: int = 0) -> Any:
    """Redraws weights: unit activations, queries and keys large enough for peaked attention."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        part = name.rsplit(".", 2)[-2] if "." in name else name
        if part in ("q_norm", "k_norm"):
            weight.data += norms
        elif weight.ndim >= 2:
            scale = max(weight.shape[1:]) ** -0.5 if weight.ndim <= 3 else weight[0].numel() ** -0.5
            if "embed" in name and weight.ndim == 2:
                scale = 1.0
            elif any(one in name for one in ("q_proj", "k_proj", "qkv")):
                scale *= 1.6
            weight.data = torch.randn(weight.shape, generator=generator) * scale
    return model.eval()


def param(name: str, *values: Any, id: str | None = None) -> Any:
    """A family, and more, as a parameter of a test: one that people use less goes to `make test-rest`."""
    import pytest
    import vlm_kin
    import vlm_sizes

    less_used = name in vlm_kin.FAMILIES or name in vlm_sizes.FAMILIES
    return pytest.param(name, *values, id=id or name, marks=[pytest.mark.rest] if less_used else [])


def available() -> dict[str, Family]:
    """Every family that the installed transformers has, by name."""
    import transformers
    import vlm_kin
    import vlm_lines
    import vlm_native
    import vlm_sizes
    import vlm_tiles

    modules = (vlm_native, vlm_tiles, vlm_lines, vlm_kin, vlm_sizes)
    families: dict[str, Family] = {name: one for module in modules for name, one in module.FAMILIES.items()}
    version = tuple(map(int, transformers.__version__.split(".")[:2]))
    return {name: one for name, one in families.items() if hasattr(transformers, one.needs) and version >= one.since}
