"""What differs between model families, in code: the names that a family's module has to define.

A family is a module of this package, so that adding one is one file and one line in `FAMILIES`. There are two protocols: what asking a
model needs (`Family`), and on top of it what a checkpoint of an original layout needs (`OriginalFamily`), which a family whose checkpoints
are all in transformers layout leaves out. Whatever is the same in all of them (finding the files, reading weights, the vocabulary,
templates, generation) is written elsewhere, once: loading in loading.py, original layouts in fitprune/checkpoints/, asking in vlm.py.

    pytest tests/families/test_families.py
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from PIL import Image
from torch import Tensor

from ..checkpoints.original import OriginalLayout


@dataclass(frozen=True)
class View:
    """A part of an image as the model reads it, and which of its visual tokens lie there: rows of patches, in reading order.

    pixels: that part, at the model's resolution; rows and columns: of patches, which divide it evenly.
    before: tokens ahead of the first patch, newlines: whether each row ends with one more; neither is a patch.
    """

    pixels: Image.Image
    rows: int
    columns: int
    before: int = 0
    newlines: bool = False

    @property
    def tokens(self) -> int:
        return self.before + self.rows * (self.columns + self.newlines)


@dataclass(frozen=True)
class Images:
    """How one image becomes model inputs.

    prepare: its tensors, each with a first dimension of 1 (one image), such as pixel_values [1, 3, side, side].
    tokens_for: how many visual tokens it takes.
    views: where these tokens lie, view by view in the order of the tokens, for drawing (fitprune/draw/).
    """

    prepare: Callable[[Image.Image], dict[str, Tensor]]
    tokens_for: Callable[[Image.Image], int]
    views: Callable[[Image.Image], list[View]]


class Family(Protocol):
    """What asking needs. Classes of transformers are imported inside functions, so that `import fitprune` stays light."""

    def model_class(self) -> Any:
        """The transformers class, such as LlavaForConditionalGeneration."""

    def image_processor(self, config: Any, source: str | None) -> Any:
        """The Pillow-backed image processor of a model with this transformers config.

        Args:
            source: Folder or hub name with a preprocessor_config.json; None to make one from the config, as for an original layout.
        """

    def images(self, config: Any, image_processor: Any) -> Images:
        """How images become inputs of a model with this config. May complete the config in place."""

    def token_ids(self, vlm: Any, prompt: str, images: Sequence[Image.Image]) -> list[int]:
        """Token ids of a prompt whose n-th `<image>` stands for the n-th image; vlm is the `VLM` that is asked."""

    def encode(self, vlm: Any, questions: Sequence[tuple[str, Sequence[Image.Image]]], padding_side: str) -> dict[str, Tensor]:
        """Model inputs, on the CPU, for a batch of (whole prompt, its images): ids and mask [B, S], pixels of all images."""


class OriginalFamily(Family, OriginalLayout, Protocol):
    """What a family with checkpoints in its authors' own layout has beside: `OriginalLayout`, which they are, what they become."""

    def claims(self, config: Mapping[str, Any]) -> bool:
        """Whether an original config.json is of this family, by fields of its own; one that two families claim is refused."""

    def processor(self, config: Any, image_processor: Any, tokenizer: Any) -> Any:
        """The transformers processor (images and text) that `fitprune convert` saves."""
