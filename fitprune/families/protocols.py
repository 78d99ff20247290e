"""What differs between model families, in code: the names that a family's module has to define.

A family is a module of this package, so that adding one is one file and one line in `FAMILIES`. There are two protocols: what asking a
model needs (`Family`), and on top of it what a checkpoint of an original layout needs (`OriginalFamily`), which a family whose checkpoints
are all in transformers layout leaves out. Whatever is the same in all of them (finding the files, reading weights, the vocabulary,
templates, generation) is written elsewhere, once: loading in loading.py, original layouts in fitprune/checkpoints/, asking in vlm.py.
Most models need no module: processor.py is the family of every other model of transformers.

    pytest tests/families/test_families.py
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from PIL import Image
from torch import Tensor

from ..checkpoints.original import OriginalLayout
from ..images.video import Video

Visual = Image.Image | Video


@dataclass(frozen=True)
class View:
    """A part of an image as the model reads it, and which of its visual tokens lie there: rows of patches, in reading order.

    pixels: that part, at the model's resolution; rows and columns: of patches, which divide it evenly.
    before: tokens ahead of the first patch, newlines: whether each row ends with one more; neither is a patch.
    at: left and top of a tile in the picture that it was cut from, where that is drawn whole; neighbours in the list belong to one picture.
    """

    pixels: Image.Image
    rows: int
    columns: int
    before: int = 0
    newlines: bool = False
    at: tuple[int, int] | None = None

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

    def knows(self, config: Mapping[str, Any]) -> bool:
        """Whether a config.json in transformers layout, of this family's model_type, is one that the family's code is right for."""

    def model_class(self) -> Any:
        """The transformers class, such as LlavaForConditionalGeneration."""

    def image_processor(self, config: Any, source: str | None) -> Any:
        """What makes inputs of images for a model with this transformers config: the Pillow-backed image processor, or a whole processor.

        Args:
            source: Folder or hub name with a preprocessor_config.json; None to make one from the config, as for an original layout.
        """

    def images(self, config: Any, image_processor: Any) -> Images:
        """How images become inputs of a model with this config. May complete the config in place."""

    def template(self, config: Any, tokenizer: Any, name: str) -> str:
        """The template of conversation.py that a checkpoint was trained with; "" where it is asked by a chat template of its own."""

    def write(self, vlm: Any, turns: Sequence[tuple[str, str | None]]) -> str:
        """The whole prompt of a conversation; vlm is the `VLM` that is asked, turns as `VLM.write`."""

    def token_ids(self, vlm: Any, prompt: str, images: Sequence[Visual]) -> list[int]:
        """Token ids of a prompt, as `write` makes it, whose n-th mark of an image stands for the n-th image."""

    def encode(self, vlm: Any, questions: Sequence[tuple[str, Sequence[Visual]]], padding_side: str) -> dict[str, Any]:
        """Model inputs, on the CPU, for a batch of (whole prompt, its images and videos): ids and mask [B, S], pixels of all images.

        Raises:
            FitPruneError: for a video, if the family's models know none.
        """

    def views(self, vlm: Any, image: Image.Image) -> list[View]:
        """As `VLM.views`."""


class OriginalFamily(Family, OriginalLayout, Protocol):
    """What a family with checkpoints in its authors' own layout has beside: `OriginalLayout`, which they are, what they become."""

    def claims(self, config: Mapping[str, Any]) -> bool:
        """Whether an original config.json is of this family, by fields of its own; one that two families claim is refused."""

    def processor(self, config: Any, image_processor: Any, tokenizer: Any) -> Any:
        """The transformers processor (images and text) that `fitprune convert` saves."""
