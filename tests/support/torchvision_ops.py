"""torchvision as the tests need it: its Python, beside a torch that its compiled part was not made for.

A wheel of torchvision brings compiled operators for one build of torch. Beside another one (a CPU build) they are not loaded, and the
import fails where it describes two of them. Video processors use none: they are declared here, so that the import goes through.

    python -c "import sys; sys.path.insert(0, 'tests/support'); import torchvision_ops; torchvision_ops.declare()"
"""

from __future__ import annotations

from importlib.util import find_spec

import torch

OPERATORS = ("nms", "qnms")
_kept: list[torch.library.Library] = []  # what is declared lasts as long as this does


def declare() -> None:
    """Declares the operators, if torchvision is installed and cannot be imported without that."""
    if find_spec("torchvision") is None or _kept:
        return
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        for name in OPERATORS:
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _kept.append(library)
