"""Pruning of every vision-language class against the oracle: which tokens go, what the survivors answer, what is generated.

The oracle (tests/support/oracle.py) runs the unmodified model at full length and masks deleted tokens; it shares no code
with fitprune. Recipes delete in two middle layers, or from the first layer on. What fails today is marked with its fault,
named as in the project's notes; the marks are strict, so the one who mends a fault sees each of them turn.

    pytest tests/decoder/test_vlms.py
"""

import oracle
import pytest
import torch
import vlms
from vlms import SPECIAL

import fitprune
from fitprune import Recipe

FAMILIES = vlms.available()
ONE, TWO = [4, "image", 5], [3, "image", 2, "image", 4]
SHARES = {"middle": {1: 40, 2: 30}, "first": {0: 30, 1: 20, 2: 20}}  # per cent of an image that a layer deletes
SCENES = {
    "start": ([["image", 6]], None),
    "one": ([ONE], None),
    "left": ([ONE, TWO], "left"),
    "right": ([ONE, TWO], "right"),
    "adjacent": ([[2, "image", "image", 3]], None),
    "video": ([[3, "video", 4]], None),
    "both": ([[2, "image", 2, "video", 3]], None),
}


def recipe_of(family, shares):
    layers = len(oracle.decoder_of(family.model()).layers)
    chosen = SHARES[shares] if not family.recurrent else {1: 40, 3: 30}
    return Recipe.from_deletions([chosen.get(layer, 0) for layer in range(layers)], visual_tokens=100)


S1 = "S1: a prompt whose only picture is a video runs dense"
S2 = "S2: video tokens count as text that asks"
S3 = "S3: a mask of four dimensions hides the padding"
S4 = "S4: adjacent images are one image in forward"
S5 = "S5: rows, tiles and frames of one picture are an image each"
BOTH_WAYS = "prefix seen both ways: text before an image asks too, but only what stands behind it is summed"

EVERYWHERE = {
    "AyaVision": "sliding layers: the cache that the model makes is refused",
    "Cohere2Vision": "sliding layers: the cache that the model makes is refused",
    "Gemma3": "dict masks: one mask for each kind of layer",
    "Gemma4": "cost: the size of heads differs by layer; then dict masks",
    "Gemma4SharedKeys": "cost: the size of heads differs by layer; then dict masks and shared keys",
    "Llama4": "complex rotary factors are taken apart along their rows; its cache is refused",
    "Phi4Multimodal": "image token: named by vision_config alone",
    "Qwen3_5": "linear attention: layers without an attention function are refused",
}


def fault(name, shares, scene, *, generates):
    """What makes a case fail today, or None."""
    told = generates and FAMILIES[name].takes("mm_encoder_outputs")  # newer transformers encode images before the prefill
    if name in EVERYWHERE:
        return EVERYWHERE[name]
    if name in ("Qwen3VL", "Qwen3VLMoe"):
        return S1 if scene == "video" else "deepstack: features are added to all the tokens that there were"
    if name == "Mistral3OnMinistral3" and shares == "middle":
        return "position_ids: a layer that needs them gets None after a cut"
    if name.startswith("Mistral3"):
        return S5
    if name in ("InternVL", "SmolVLM", "Idefics3", "Ovis2"):
        return S5 if scene in ("left", "right", "adjacent") else None  # where the second image has tiles
    if name.startswith("Glm"):
        return S5 if scene == "video" else None
    if name == "PaliGemma":
        by_scene = {"one": BOTH_WAYS, "left": S3, "right": S3, "adjacent": BOTH_WAYS if told else S4}
        return by_scene.get(scene)
    if scene == "adjacent" and name.startswith("Llava"):
        return None if told else S4
    return {"video": S1, "both": S2}.get(scene)


def cases(scenes, *, generates):
    found = []
    for name, family in FAMILIES.items():
        for shares in SHARES:
            for scene in scenes:
                if (scene in ("video", "both") and not family.videos) or (scene == "both" and not family.mixes):
                    continue
                if family.recurrent and shares == "first":
                    continue
                reason = fault(name, shares, scene, generates=generates)
                marks = [pytest.mark.xfail(strict=True, reason=reason)] if reason else []
                found.append(pytest.param(name, shares, scene, marks=marks, id=f"{name}-{shares}-{scene}"))
    return found


def positions_of(alive):
    return [[row.tolist() for row in rows] for rows in alive]


@pytest.mark.parametrize(("name", "shares", "scene"), cases(SCENES, generates=False))
def test_prefill(name, shares, scene):
    family = FAMILIES[name]
    rows, padding = SCENES[scene]
    model, recipe, inputs = family.model(), recipe_of(family, shares), family.inputs(rows, padding)
    wanted = oracle.select(model, inputs, recipe)
    with torch.no_grad(), fitprune.prune(model, recipe) as trace:
        pruned = model(**inputs.call).logits
    layers = range(len(oracle.decoder_of(model).layers))
    assert positions_of(trace.alive) == positions_of(wanted.alive(layer) for layer in layers)
    for row, survivors in enumerate(wanted.survivors):
        columns = (trace.positions[row] >= 0).nonzero().flatten()
        assert trace.positions[row, columns].tolist() == survivors.tolist()
        assert (pruned[row, columns] - wanted.logits[row, survivors]).abs().max() < 1e-4


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize(("name", "shares", "scene"), cases(["one", "left", "adjacent"], generates=True))
def test_greedy_generation(name, shares, scene, implementation):
    """Every step's answer is the oracle's, which knows the prompt's deletions and nothing of caches."""
    family = FAMILIES[name]
    rows, padding = SCENES[scene]
    model, recipe, inputs = family.model(), recipe_of(family, shares), family.inputs(rows, padding)
    model.set_attn_implementation(implementation)
    try:
        placed = (lambda one: one.positioned()) if family.absolute else (lambda one: one)
        wanted = oracle.select(model, placed(inputs), recipe)
        with fitprune.prune(model, recipe) as trace:
            sequence = model.generate(**inputs.call, max_new_tokens=6, do_sample=False, suppress_tokens=SPECIAL)
        assert positions_of(trace.alive) == positions_of(wanted.alive(layer) for layer in range(recipe.num_layers))
        start = inputs.real.shape[1]
        deleted = [[(row == layer).nonzero().flatten() for row in wanted.removed] for layer in range(recipe.num_layers)]
        dense = oracle.masked_dense(model, placed(inputs.continued(sequence[:, start:])), deleted).logits[:, start - 1 : -1]
        dense[..., SPECIAL] = -torch.inf
        assert sequence[:, start:].tolist() == dense.argmax(-1).tolist()
    finally:
        model.set_attn_implementation("sdpa")
