"""Pruning of every vision-language class against the oracle: which tokens go, what the survivors answer, what is generated.

The oracle (tests/support/oracle.py) runs the unmodified model at full length and masks deleted tokens; it shares no code
with fitprune. Recipes delete in two middle layers, or from the first layer on. `EXCEPT` names what a class cannot be asked, and why.

    pytest tests/decoder/test_vlms.py -k Qwen3VL
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
INSTEAD = {
    "Qwen3_5": {1: 40, 3: 30},
    "Qwen3_5Moe": {1: 40, 3: 30},
    "Lfm2Vl": {1: 40, 3: 30},
    "Gemma4SharedKeys": {0: 40, 1: 30},
}  # of classes where not every layer may delete: for both
SCENES = {
    "start": ([["image", 6]], None),
    "one": ([ONE], None),
    "left": ([ONE, TWO], "left"),
    "right": ([ONE, TWO], "right"),
    "ragged": ([[2, "image", 2, "image", 2], [40, "image", 3]], "left"),  # the row that loses most is not the one with padding
    "adjacent": ([[2, "image", "image", 3]], None),
    "video": ([[3, "video", 4]], None),
    "both": ([[2, "image", 2, "video", 3]], None),
}
EXCEPT = {
    ("Phi4Multimodal", "adjacent"): "refused, as nothing tells adjacent images apart (test_vlm_rules.py)",
    ("InternVL", "video"): "its frames are written as images, each of which has a budget",
    ("InternVL", "both"): "its frames are written as images, each of which has a budget",
    ("SmolVLM", "video"): "its frames are written as images, each of which has a budget",
    ("SmolVLM", "both"): "its frames are written as images, each of which has a budget",
    ("VideoLlava", "video"): "its features come frame by frame, each of which has a budget",
    ("VideoLlava", "both"): "its features come frame by frame, each of which has a budget",
}


def recipe_of(name, shares):
    layers = len(oracle.decoder_of(FAMILIES[name].model()).layers)
    chosen = INSTEAD.get(name, SHARES[shares])
    return Recipe.from_deletions([chosen.get(layer, 0) for layer in range(layers)], visual_tokens=100)


def cases(scenes, shares=tuple(SHARES)):
    found = []
    for name, family in FAMILIES.items():
        for scene in scenes:
            if (scene in ("video", "both") and not family.videos) or (scene == "both" and not family.mixes) or (name, scene) in EXCEPT:
                continue
            found += [vlms.param(name, one, scene, id=f"{name}-{one}-{scene}") for one in (shares[:1] if name in INSTEAD else shares)]
    return found


def positions_of(alive):
    return [[row.tolist() for row in rows] for rows in alive]


def everywhere(dense, layers):
    """Per layer and row, what the oracle deleted."""
    return [[(row == layer).nonzero().flatten() for row in dense.removed] for layer in range(layers)]


@pytest.mark.parametrize(("name", "shares", "scene"), cases(SCENES))
def test_prefill(name, shares, scene):
    family = FAMILIES[name]
    model, recipe, inputs = family.model(), recipe_of(name, shares), family.inputs(*SCENES[scene])
    wanted = oracle.select(model, inputs, recipe)
    with torch.no_grad(), fitprune.prune(model, recipe) as trace:
        pruned = model(**inputs.call).logits
    assert positions_of(trace.alive) == positions_of(wanted.alive(layer) for layer in range(recipe.num_layers))
    for row, survivors in enumerate(wanted.survivors):
        columns = (trace.positions[row] >= 0).nonzero().flatten()
        assert trace.positions[row, columns].tolist() == survivors.tolist()
        assert (pruned[row, columns] - wanted.logits[row, survivors]).abs().max() < 1e-4


@pytest.mark.parametrize("name", map(vlms.param, FAMILIES))
def test_a_recipe_that_deletes_nothing_changes_no_bit(name):
    model, inputs = FAMILIES[name].model(), FAMILIES[name].inputs([ONE, TWO], "left")
    with torch.no_grad():
        dense = model(**inputs.call).logits
        with fitprune.prune(model, Recipe.none(recipe_of(name, "first").num_layers)):
            assert torch.equal(model(**inputs.call).logits, dense)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize(("name", "shares", "scene"), cases(["left", "ragged", "adjacent", "both"], ("first",)))
def test_every_step_of_a_greedy_answer(name, shares, scene, implementation):
    """The oracle knows the prompt's deletions and nothing of caches."""
    family = FAMILIES[name]
    model, recipe, inputs = family.model(), recipe_of(name, shares), family.inputs(*SCENES[scene])
    model.set_attn_implementation(implementation)
    try:
        placed = (lambda one: one.positioned()) if family.absolute else (lambda one: one)
        wanted = oracle.select(model, placed(inputs), recipe)
        with fitprune.prune(model, recipe) as trace:
            made = model.generate(
                **inputs.call, max_new_tokens=6, do_sample=False, suppress_tokens=SPECIAL, output_logits=True, return_dict_in_generate=True
            )
        assert positions_of(trace.alive) == positions_of(wanted.alive(layer) for layer in range(recipe.num_layers))
        start = inputs.real.shape[1]
        longer = placed(inputs.continued(made.sequences[:, start:]))
        dense = oracle.masked_dense(model, longer, everywhere(wanted, recipe.num_layers)).logits[:, start - 1 : -1]
        torch.testing.assert_close(torch.stack(made.logits, 1), dense, rtol=0, atol=1e-4)
    finally:
        model.set_attn_implementation("sdpa")


@pytest.mark.parametrize("name", [vlms.param(name) for name in FAMILIES if name != "Llama4"])  # whose images are not repeated with its rows
def test_beams(name):
    """What a beam search says that its sequences are worth is what the oracle makes of them."""
    family = FAMILIES[name]
    model, recipe, inputs = family.model(), recipe_of(name, "first"), family.inputs([ONE])
    deleted = everywhere(oracle.select(model, inputs, recipe), recipe.num_layers)
    how = {"max_new_tokens": 4, "num_beams": 3, "num_return_sequences": 3, "length_penalty": 0.0, "do_sample": False}
    how |= {"suppress_tokens": SPECIAL, "output_scores": True, "return_dict_in_generate": True}
    try:
        unlike = unlike_beams(model, inputs, (), model.generate(**inputs.call, **how))
    except RuntimeError as error:  # rows of pictures that were not repeated with those of text
        unlike = str(error)
    if unlike:
        pytest.skip(f"this transformers' own beams are wrong without pruning: {unlike}")
    with fitprune.prune(model, recipe):
        made = model.generate(**inputs.call, **how)
    assert not unlike_beams(model, inputs, deleted, made)


def unlike_beams(model, inputs, deleted, made):
    """The oracle's worth of sequences and what a search said, where the two differ."""
    start = inputs.real.shape[1]
    assert len({tuple(row) for row in made.sequences.tolist()}) == 3
    pairs = []
    for sequence, score in zip(made.sequences, made.sequences_scores, strict=True):
        new = sequence[None, start:]
        logits = oracle.masked_dense(model, inputs.continued(new), deleted).logits[:, start - 1 : -1]
        pairs.append((logits.log_softmax(-1).gather(2, new[..., None]).sum().item(), score.item()))
    return [pair for pair in pairs if abs(pair[0] - pair[1]) > 1e-3]


class Turns:
    """A conversation of two images as one call, and as two: the second continues the cache of the first."""

    def __init__(self, name):
        family = FAMILIES[name]
        draft = family.draft(TWO)
        self.model, self.whole = family.model(), family.inputs([TWO])
        visuals = self.whole.visuals[0]
        self.cut = int(visuals[0].tokens[-1]) + 2
        if any(len(values) != 2 for values in draft.fields.values()):
            pytest.skip("this class's pictures are not a field's entries one by one")
        seen = {}
        decoder = oracle.decoder_of(self.model)
        hook = decoder.register_forward_pre_hook(lambda module, args, kwargs: seen.update(kwargs), with_kwargs=True)
        with torch.no_grad():
            self.dense = self.model(**self.whole.call).logits
        hook.remove()
        per_token = {key: value for key, value in self.whole.call.items() if key in ("input_ids", "moe_mm_token_type_ids", family.types)}
        if (positions := seen.get("position_ids")) is not None:
            per_token["position_ids"] = positions
        self.calls = []
        for at, columns in enumerate((slice(None, self.cut), slice(self.cut, None))):
            draft.fields, kept = {key: [values[at]] for key, values in draft.fields.items()}, draft.fields
            self.calls.append({**{key: value[..., columns] for key, value in per_token.items()}, **family.fields([draft])})
            draft.fields = kept

    def run(self):
        with torch.no_grad():
            first = self.model(**self.calls[0], use_cache=True)
            past = first.past_key_values
            return first.logits, self.model(**self.calls[1], use_cache=True, past_key_values=past).logits


IN_ONE_CALL = {  # the unpruned model's second call with an image is not what it does in one call, so there is nothing to be exact to
    "Gemma3": "images see themselves both ways in a first call only",
    "Gemma4": "images see themselves both ways in a first call only",
    "Gemma4SharedKeys": "images see themselves both ways in a first call only",
    "PaliGemma": "all of a call sees itself both ways",
    "Phi4Multimodal": "logits of a second call with an image are others (by 3.0 here)",
    "Granite4Vision": "logits of a second call with an image are others (by 3.8 here)",
}


@pytest.mark.parametrize("name", [vlms.param(name) for name in FAMILIES if name not in IN_ONE_CALL])
def test_a_later_turn_with_a_new_image(name):
    turns = Turns(name)
    model, recipe, whole, cut = turns.model, recipe_of(name, "first"), turns.whole, turns.cut
    unpruned = torch.cat(turns.run(), 1)
    assert (unpruned - turns.dense).abs().max() < 1e-4
    begun = vlms.Inputs(turns.calls[0], [whole.visuals[0][:1]], whole.real[:, :cut])
    before = oracle.select(model, begun, recipe).removed
    wanted = oracle.select(model, whole, recipe, before)
    with fitprune.prune(model, recipe) as trace:
        _, later = turns.run()
    last = [row.tolist() for row in trace.alive[-1]]
    survivors = wanted.survivors[0]
    assert last[0] == [at - cut for at in survivors.tolist() if at >= cut] or last[0] == survivors[survivors >= cut].tolist()
    assert (later[0] - wanted.logits[0, survivors[survivors >= cut]]).abs().max() < 1e-4


UNPRICED = ("Ernie4_5_VLMoe",)  # a token's kind says which of two sets of experts it meets: test_vlm_rules.py


@pytest.mark.parametrize("name", [vlms.param(name) for name in FAMILIES if name not in UNPRICED])
def test_a_recipe_is_fitted_and_meets_its_budget(name):
    model, inputs = FAMILIES[name].model(), FAMILIES[name].inputs([ONE, TWO], "left")
    stats = fitprune.observe(model, [inputs.call], progress=False)
    assert stats.visual_tokens.tolist() == [len(one.tokens) for row in inputs.visuals for one in row]
    recipe = fitprune.fit(stats, reduction_ratio=0.5)
    assert recipe.achieved is not None
    assert recipe.achieved >= 0.5
    wanted = oracle.select(model, inputs, recipe)
    with torch.no_grad(), fitprune.prune(model, recipe) as trace:
        model(**inputs.call)
    assert positions_of(trace.alive) == positions_of(wanted.alive(layer) for layer in range(recipe.num_layers))
    left = [sum(len(one.tokens) - sum(recipe.deletions(len(one.tokens), len(trace))) for one in visuals) for visuals in inputs.visuals]
    assert [len(row) for row in trace.visual[-1]] == left
