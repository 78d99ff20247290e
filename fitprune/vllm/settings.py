"""What a user says in `additional_config={"fitprune": {…}}`, read once and passed on as plain data.

In it:

    recipe      a file, or the content of one; None (or no "fitprune" at all): vLLM as it is
    score       how tokens are ranked; None: the recipe's own, which is the paper's if it names none
    kv_groups   whether deleted tokens take no cache memory (a cache group per stage); false keeps vLLM's own scheduler class
    seed        for scores that are random

    pytest tests/vllm/test_settings.py
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import FitPruneError, UnsupportedError
from ..recipe import Recipe
from ..scores import Score, find_score
from . import KEY


@dataclass(frozen=True)
class Settings:
    """A recipe to prune with, and how."""

    recipe: Recipe
    score: str | None = None
    kv_groups: bool = True
    seed: int = 0

    @classmethod
    def read(cls, additional_config: Any) -> Settings | None:
        """From vLLM's `additional_config`; None where it asks for no recipe.

        Raises:
            FitPruneError: for settings that there are not, an unreadable recipe, an unknown score, or a recipe that vLLM cannot run.
        """
        given = additional_config.get(KEY) if isinstance(additional_config, Mapping) else None
        if given is None:
            return None
        if not isinstance(given, Mapping):
            raise FitPruneError(f'additional_config: "{KEY}" must be an object such as {{"recipe": "r60.recipe.json"}}, not {given!r}')
        known = ("recipe", "score", "kv_groups", "seed")
        if unknown := sorted(set(given) - set(known)):
            raise FitPruneError(f'additional_config: "{KEY}" knows {", ".join(known)}, not {", ".join(unknown)}')
        if given.get("recipe") is None:
            return None
        for name, kind in (("kv_groups", bool), ("seed", int)):
            if not isinstance(given.get(name, kind()), kind):
                raise FitPruneError(f'additional_config: {name} of "{KEY}" must be {kind.__name__}, not {given[name]!r}')
        recipe, score = given["recipe"], given.get("score")
        if isinstance(recipe, Mapping):
            recipe = Recipe.from_bytes(json.dumps(recipe).encode(), f'the recipe in "{KEY}"')
        elif isinstance(recipe, str):
            recipe = Recipe.load(recipe)
        else:
            raise FitPruneError(f"additional_config: recipe must be a file or the content of one, not {recipe!r}")
        if score is not None and not isinstance(score, str):
            raise FitPruneError(f"additional_config: score must be a name, not {score!r}")
        if recipe.absorb is not None:
            raise UnsupportedError(
                "in this recipe survivors stand for several tokens (absorb), which vLLM's attention has no mask for: fit one without"
            )
        settings = cls(recipe, score, given.get("kv_groups", True), given.get("seed", 0))
        settings.ranking()
        return settings

    def ranking(self) -> Score:
        """The score that tokens are ranked by."""
        return find_score(self.recipe.ranked_by(self.score))

    def to_dict(self) -> dict[str, Any]:
        """Plain data that `read` reads anywhere: the recipe's content stands in the place of its file."""
        return {"recipe": json.loads(self.recipe.to_bytes()), "score": self.score, "kv_groups": self.kv_groups, "seed": self.seed}
