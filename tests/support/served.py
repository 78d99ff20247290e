"""Marks tests that need the packages of `fitprune[serve]`, and transformers' server."""

from __future__ import annotations

import pytest

from fitprune import FitPruneError
from fitprune.web.serve import needed


def missing() -> str:
    """What to install; "" if nothing is missing."""
    try:
        needed()
    except FitPruneError as error:
        return str(error)
    return ""


served = pytest.mark.skipif(bool(missing()), reason=missing())
