"""torchvision as the tests need it: its Python, beside a torch that its compiled part was not made for.

A wheel of torchvision brings compiled operators for one build of torch. Beside another one (a CPU build) they are not loaded, and the
import fails where it describes two of them. Video processors use none: they are declared here, so that the import goes through.

    python -c "import sys; sys.path.insert(0, 'tests/support'); import torchvision_ops; torchvision_ops.declare()"
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from typing import Any

OPERATORS = ("nms", "qnms")
_kept: list[Any] = []  # what is declared lasts as long as this does


def declare() -> None:
    """Declares the operators, if torchvision is installed and cannot be imported without that."""
    if find_spec("torchvision") is None or _kept:
        return
    import torch  # here, so that `declare_when_imported` costs no process its start

    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        for name in OPERATORS:
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _kept.append(library)


class _Before:
    """A finder that finds nothing, but declares the operators when torchvision is looked for."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name == "torchvision":
            sys.meta_path.remove(self)  # type: ignore[arg-type]
            declare()


def declare_when_imported() -> None:
    """For a .pth file of an environment: every process that imports torchvision has the operators by then."""
    sys.meta_path.insert(0, _Before())  # type: ignore[arg-type]
