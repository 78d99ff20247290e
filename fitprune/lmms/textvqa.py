"""The image of an embedded TextVQA question, for tasks/fitprune_textvqa.yaml.

python -m lmms_eval --tasks list --include_path "$(python -m fitprune.lmms)"
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from PIL import Image

from ..embedded import embedded
from ..images.reading import read_image


def images(document: Mapping[str, Any]) -> list[Image.Image]:
    """The one image that the question is about; a damaged installation raises FitPruneError."""
    return [read_image(embedded().images / f"{document['image_id']}.jpg")]
