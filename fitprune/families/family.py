"""What differs between model families, in code: the names that a family's module has to define.

A family is a module of this package, so that adding one is one file and one line in `FAMILIES`. Whatever is the same in
all of them (finding the files, reading weights, the vocabulary, prompts, batches, generation) is written elsewhere,
once: loading in `__init__.py`, original layouts in fitprune/checkpoints/, asking in `loaded.py`.

    pytest tests/test_families.py
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from PIL import Image
from torch import Tensor

from ..checkpoints.original import Original


@dataclass(frozen=True)
class View:
    """A part of a picture as the model reads it, and which of its visual tokens lie there: rows of patches, in reading order.

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
class Pictures:
    """How one picture becomes model inputs.

    prepare: its tensors, each with a first dimension of 1 (one picture), such as pixel_values [1, 3, side, side].
    tokens_for: how many visual tokens it takes.
    views: where these tokens lie, view by view in the order of the tokens, for drawing (fitprune/draw/).
    """

    prepare: Callable[[Image.Image], dict[str, Tensor]]
    tokens_for: Callable[[Image.Image], int]
    views: Callable[[Image.Image], list[View]]


__all__ = ["Family", "Original", "Pictures", "View"]


class Family(Protocol):
    """A family's module. Classes of transformers are imported inside functions, so that `import fitprune` stays light."""

    RULES: Sequence[tuple[str, str]]
    """Original name of a weight → transformers' (5.23, in memory): (regular expression, replacement), the first that
    matches at the beginning of the name. Only what is peculiar to the family: language model, projector and a plain
    CLIP tower are renamed for every family. A replacement of "" drops the weight."""

    def model_class(self) -> Any:
        """The transformers class, such as LlavaForConditionalGeneration."""

    def claims(self, config: Mapping[str, Any]) -> bool:
        """Whether an original config.json is of this family."""

    def configure(self, original: Original) -> Any:
        """The transformers config of an original checkpoint.

        Raises:
            FitPruneError: for a variant that is not supported; names the field.
        """

    def image_processor(self, config: Any, source: str | None) -> Any:
        """The Pillow-backed image processor of a model with this transformers config.

        Args:
            source: Folder or hub name with preprocessor_config.json in transformers layout; None to make one from the
                config, as for a checkpoint of the original layout.
        """

    def processor(self, config: Any, image_processor: Any, tokenizer: Any) -> Any:
        """The transformers processor (pictures and text) that `fitprune convert` saves."""

    def pictures(self, config: Any, image_processor: Any) -> Pictures:
        """How pictures become inputs of a model with this config. May complete the config in place."""
