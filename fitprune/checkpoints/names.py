"""Original names of weights → the names that they have in transformers' models.

The language model, the projector and a plain CLIP tower are named alike in every original LLaVA checkpoint; what a
family has beyond that is in its module's `RULES`, which go first. Names on the right are those of transformers 5.23 in
memory; earlier versions of 5 keep CLIP one level deeper, which `in_model` finds out from the model itself. `in_file` goes on to the names
of the hub's checkpoints, which every version of transformers and other engines read: what a version writes by itself, others may not.

    python -c "from fitprune.checkpoints.names import rename; print(rename('model.mm_projector.0.bias', ()))"
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

TOWER = "model.vision_tower."

COMMON = (
    (r".*\.rotary_emb\.inv_freq$", ""),
    (r".*\.position_ids$", ""),
    (r"model\.(embed_tokens|layers|norm)\.", r"model.language_model.\1."),
    (r"lm_head\.", "lm_head."),
    (r"model\.mm_projector\.0\.", "model.multi_modal_projector.linear_1."),
    (r"model\.mm_projector\.2\.", "model.multi_modal_projector.linear_2."),
    (r"model\.vision_tower\.vision_tower\.(vision_model\.)?", TOWER),
)
CLIP = (  # a tower's own repository
    (r".*position_ids$", ""),
    (r"(text_model|text_projection|visual_projection)\.|logit_scale$", ""),
    (r"(vision_model\.)?(embeddings|encoder|pre_layrnorm|post_layernorm)\.", TOWER + r"\2."),
)
HUB = {
    "model.vision_tower.vision_model.": "vision_tower.vision_model.",
    TOWER: "vision_tower.vision_model.",
    "model.multi_modal_projector.": "multi_modal_projector.",
    "model.language_model.": "language_model.model.",
    "lm_head.": "language_model.lm_head.",
    "model.image_newline": "image_newline",
}  # in memory, and in the hub's checkpoints; the first that fits


def rename(name: str, rules: Sequence[tuple[str, str]], common: Sequence[tuple[str, str]] = COMMON) -> str | None:
    """The name of a weight in transformers' model; "" for one that is not needed, None for one that is not known."""
    for pattern, replacement in (*rules, *common):
        if re.match(pattern, name):
            return re.sub(pattern, replacement, name, count=1) if replacement else ""
    return None


def in_model(name: str | None, names: Collection[str]) -> str | None:
    """`name`, or how the installed transformers spells it, if the model has only that."""
    if name is None:
        return None
    deeper = name.replace(TOWER, f"{TOWER}vision_model.", 1)
    return deeper if name not in names and deeper in names else name


def in_file(name: str) -> str:
    """What the hub's checkpoints call a weight of transformers' LLaVA models; a ValueError for one that they do not have."""
    here = next((prefix for prefix in HUB if name.startswith(prefix)), None)
    if here is None:
        raise ValueError(f"no hub name for {name}: HUB does not fit this version of transformers")
    return HUB[here] + name.removeprefix(here)
