"""What the fields of a recipe may be: checked once, when it is made, and plain from then on.

Recipes come from people, from files and from fits; whatever has a wrong type or cannot be deleted is refused here with
one line. Numbers of numpy and torch become Python's, so that a recipe is the same after it was saved and read.

    python -c "from fitprune import Recipe; Recipe.from_deletions([3, -1], visual_tokens=16)"
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from typing import Any

from ..cost import CostModel
from ..errors import FitPruneError

CRITERIA = ("both", "cross", "self", "product")  # whose least attended tokens may go in a fit; "both": the paper's
WAYS = ("mass", "drift")  # by which a schedule is fitted: attention that is lost, or how far answers move
SPREAD = ("spread theta=0.25", "spread theta=0", "spread theta=0.5", "spread theta=1")  # tried by drift, the first with every candidate
SCALINGS = ("proportional", "budget", "fraction")


def checked(fields: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's fields, numbers as plain int or float and counts as a tuple.

    Raises:
        FitPruneError: for counts that are negative, not whole or more than there are, and for fields of a wrong type.
    """
    found = dict(fields)
    if found["scaling"] not in SCALINGS:
        raise FitPruneError(f"recipe: scaling must be one of {', '.join(SCALINGS)}, not {found['scaling']!r}")
    fraction = found["scaling"] == "fraction"
    if isinstance(found["counts"], str | Mapping) or not hasattr(found["counts"], "__iter__"):
        raise FitPruneError(f"recipe: counts must be a list with one number per layer, not {found['counts']!r}")
    counts = found["counts"] = tuple(number(count, "deletions", whole=not fraction) for count in found["counts"])
    tokens = found["visual_tokens"] = number(found["visual_tokens"], "visual_tokens", whole=True)
    if not counts:
        raise FitPruneError("recipe: there must be at least one layer")
    if tokens < 1:
        raise FitPruneError(f"recipe: visual_tokens must be at least 1, not {tokens}")
    if sum(counts) > tokens + (1e-9 if fraction else 0):
        raise FitPruneError(f"recipe: deletes {sum(counts):g} tokens of {tokens}")
    for name in ("num_layers", "samples", "reduction_ratio", "achieved", "alpha", "drift", "drift_error"):
        if found[name] is not None:
            found[name] = number(found[name], name, whole=name in ("num_layers", "samples"))
    for name in ("model", "fingerprint", "source", "score", "fitprune_version"):
        if found[name] is not None and not isinstance(found[name], str):
            raise FitPruneError(f"recipe: {name} must be text, not {found[name]!r}")
    if found["absorb"] is not None and not 0 <= (least := number(found["absorb"], "absorb", whole=False)) <= 1:
        raise FitPruneError(f"recipe: absorb is a cosine from 0 to 1, not {least!r}")
    if found["num_layers"] not in (None, len(counts)):
        raise FitPruneError(f"recipe: num_layers is {found['num_layers']} but there are {len(counts)} counts")
    cost, ratio = found["cost"], found["reduction_ratio"]
    if cost is not None and not isinstance(cost, CostModel):
        raise FitPruneError(f"recipe: cost must be a cost model, not {cost!r}")
    if cost is not None and cost.layers == len(counts):
        for layer, count in enumerate(counts):
            if count and layer not in cost.deletable:
                raise FitPruneError(
                    f"recipe: deletes in layer {layer}, but its cost model can only in {', '.join(map(str, cost.deletable))}"
                )
    if found["scaling"] == "budget":
        if cost is None or ratio is None or not ratio < 1:
            raise FitPruneError('recipe: scaling "budget" needs a cost model and a reduction ratio below 1')
        if cost.layers != len(counts):
            raise FitPruneError(f"recipe: {len(counts)} counts for a cost model of {cost.layers} layers")
    return found


def number(value: Any, name: str, whole: bool) -> int | float:
    """A finite number that is not negative, as a plain int or float; numpy and torch scalars are welcome.

    Raises:
        FitPruneError: for anything else.
    """
    try:
        if isinstance(value, bool | str):
            raise TypeError
        plain = operator.index(value) if whole else float(value)
    except (TypeError, ValueError):
        raise FitPruneError(f"recipe: {name} must be {'a whole number' if whole else 'a number'}, not {value!r}") from None
    if not 0 <= plain < math.inf:
        raise FitPruneError(f"recipe: {name} must not be negative or endless, not {value!r}")
    return plain
