"""What pruning cannot do: an error of one line that says so and why, never a wrong answer."""

import re

import pytest
import tiny
import torch
from test_prune import ROWS
from tiny import LAYERS, RECIPE, embedded, prompt
from transformers import AttentionInterface, Gemma2Config, Gemma2ForCausalLM, StaticCache

import fitprune
from fitprune import FitPruneError, Recipe, UnsupportedError
from fitprune.decoder.attach import attachment_of
from fitprune.decoder.upstream import pass_cache

GREEDY = {"do_sample": False, "max_new_tokens": 4}


class Refused:
    """`with refused("words", kind):` the block raises that error, in one line that contains the words."""

    def __init__(self, words, kind=FitPruneError):
        self.words, self.kind = words, kind

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        assert error is not None, "nothing was raised"
        if not isinstance(error, self.kind):
            return False
        assert re.search(self.words, str(error)), str(error)
        assert "\n" not in str(error)
        assert len(str(error)) > 30
        return True


refused = Refused


def clean(model):
    """Nothing is left on the layers (test_attach.py looks at everything)."""
    return attachment_of(model) is None


# ---- caches and decoding -----------------------------------------------------------------------------------------


def test_static_caches(llava):
    with refused("fixed in advance", UnsupportedError), torch.no_grad(), fitprune.prune(llava, RECIPE):
        llava.generate(**ROWS[0], **GREEDY, cache_implementation="static")
    assert clean(llava)


def test_a_static_cache_by_hand(llama):
    embeds, mask = embedded(24, (3, 19))
    with refused("fixed in advance", UnsupportedError), torch.no_grad(), fitprune.prune(llama, RECIPE, visual_mask=mask):
        llama(inputs_embeds=embeds, **pass_cache(llama, StaticCache(config=llama.config, max_cache_len=40)))


def test_prompt_lookup(llava):
    with refused("prompt.lookup", UnsupportedError), torch.no_grad(), fitprune.prune(llava, RECIPE):
        llava.generate(**ROWS[0], **GREEDY, prompt_lookup_num_tokens=2)
    assert clean(llava)


def test_assisted_decoding(llama):
    """The assistant proposes several tokens; rejected ones would have to be cut from caches of unequal length."""
    ids = prompt(24, seed=3)["input_ids"]
    mask = torch.zeros(1, 24, dtype=torch.bool)
    mask[:, 3:19] = True
    with refused("assistant"), torch.no_grad(), fitprune.prune(llama, RECIPE, visual_mask=mask):
        llama.generate(ids, **GREEDY, assistant_model=tiny.llama(seed=5))
    assert clean(llama)


# ---- training ----------------------------------------------------------------------------------------------------


def test_training_mode_with_gradients():
    model = tiny.llava()
    model.train()
    with refused("inference", UnsupportedError), fitprune.prune(model, RECIPE):
        model(**ROWS[0])
    with torch.no_grad(), fitprune.prune(model, RECIPE) as trace:  # without gradients the mode does not matter
        model(**ROWS[0])
    assert len(trace) == LAYERS


@pytest.mark.parametrize("bare", [False, True])
def test_labels(llava, llama, bare):
    with refused("labels", UnsupportedError), torch.no_grad():
        if bare:
            embeds, mask = embedded(24, (3, 19))
            with fitprune.prune(llama, RECIPE, visual_mask=mask):
                llama(inputs_embeds=embeds, labels=torch.ones(1, 24, dtype=torch.long))
        else:
            with fitprune.prune(llava, RECIPE):
                llava(**ROWS[0], labels=ROWS[0]["input_ids"])
    assert clean(llava)


# ---- attention ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["flex_attention", "paged|sdpa"])
def test_flex_and_paged_attention(llama, name):
    embeds, mask = embedded(24, (3, 19))
    before = llama.config._attn_implementation
    try:
        llama.config._attn_implementation_internal = name
        with refused("sdpa", UnsupportedError), fitprune.prune(llama, RECIPE, visual_mask=mask):
            pass
        llama.config._attn_implementation_internal = before
        with refused("sdpa", UnsupportedError), torch.no_grad(), fitprune.prune(llama, RECIPE, visual_mask=mask):
            llama.config._attn_implementation_internal = name  # switched inside the block
            llama(inputs_embeds=embeds)
    finally:
        llama.config._attn_implementation_internal = before
    assert clean(llama)


def test_attention_with_more_in_it_than_the_scores_know():
    """Gemma 2 caps its logits; without the cap it is an ordinary decoder, cut at the exits."""
    sizes = {**tiny.SIZES, "head_dim": 8, "layer_types": ["full_attention"] * LAYERS}
    embeds, mask = embedded(24, (3, 19))
    model = tiny.sharpen(Gemma2ForCausalLM(Gemma2Config(**sizes, attn_logit_softcapping=50.0)))
    model.set_attn_implementation("eager")
    with refused("softcap", UnsupportedError), torch.no_grad(), fitprune.prune(model, RECIPE, visual_mask=mask):
        model(inputs_embeds=embeds)
    model = tiny.sharpen(Gemma2ForCausalLM(Gemma2Config(**sizes, attn_logit_softcapping=None)))
    dense = tiny.dense_pruned(model, {"inputs_embeds": embeds}, [(3, 19)], RECIPE)
    with torch.no_grad(), fitprune.prune(model, RECIPE, visual_mask=mask) as trace:
        model(inputs_embeds=embeds, use_cache=False)
    assert [rows[0].tolist() for rows in trace.alive] == [dense.alive(layer) for layer in range(LAYERS)]


def test_a_layer_that_keeps_the_state_to_itself(llama):
    """No silent density: attention that is not shown to us is an error."""
    embeds, mask = embedded(24, (3, 19))
    layer = llama.model.layers[2]
    cls = type(layer.self_attn)
    try:
        layer.self_attn.forward = lambda hidden_states, **kwargs: cls.forward(
            layer.self_attn, hidden_states, **{name: value for name, value in kwargs.items() if name != "fitprune"}
        )
        with refused("does not hand", UnsupportedError), torch.no_grad(), fitprune.prune(llama, RECIPE, visual_mask=mask):
            llama(inputs_embeds=embeds)
        with (
            refused("does not hand", UnsupportedError),
            torch.no_grad(),
            tiny.cut_at_exit(),
            fitprune.prune(llama, RECIPE, visual_mask=mask),
        ):
            llama(inputs_embeds=embeds)
    finally:
        del layer.self_attn.__dict__["forward"]


def test_a_decoder_that_keeps_the_state_to_itself():
    model = tiny.llama()
    decoder = model.model
    own = decoder.forward
    decoder.forward = lambda *args, fitprune=None, **kwargs: own(*args, **kwargs)
    embeds, mask = embedded(24, (3, 19))
    with refused("does not hand", UnsupportedError), torch.no_grad(), fitprune.prune(model, RECIPE, visual_mask=mask):
        model(inputs_embeds=embeds)


def test_a_model_that_keeps_the_state_to_itself():
    model = tiny.llava()
    language = model.model.language_model
    own = language.forward
    model.model.language_model = Deaf(language, own)
    with refused("visual_mask|does not", UnsupportedError), torch.no_grad(), fitprune.prune(model, RECIPE):
        model(**ROWS[0])


class Deaf(torch.nn.Module):
    """Stands before a decoder and drops keyword arguments that it does not know."""

    def __init__(self, decoder, forward):
        super().__init__()
        self.decoder, self.own, self.config, self.layers = decoder, forward, decoder.config, decoder.layers

    def get_input_embeddings(self):
        return self.decoder.get_input_embeddings()

    def forward(self, attention_mask=None, position_ids=None, inputs_embeds=None, cache=None, past_key_values=None, **_):
        return self.own(attention_mask=attention_mask, position_ids=position_ids, inputs_embeds=inputs_embeds)


# ---- recipes and masks -------------------------------------------------------------------------------------------


def test_a_recipe_for_another_model(llava):
    with refused(r"5.*4|4.*5"), fitprune.prune(llava, Recipe.from_deletions([1] * 5, visual_tokens=16)):
        pass
    with refused("Recipe"), fitprune.prune(llava, [1, 2, 3, 4]):
        pass
    with refused("score"), fitprune.prune(llava, RECIPE, score="clairvoyance"):
        pass
    assert clean(llava)


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (torch.ones(1, 24), "bool"),
        (torch.ones(24, dtype=torch.bool), r"\[batch, sequence\]"),
        (torch.ones(1, 23, dtype=torch.bool), "23"),
        (torch.ones(1, 25, dtype=torch.bool), "25"),
        (torch.ones(2, 24, dtype=torch.bool), "2 rows"),
    ],
)
def test_a_mask_that_does_not_fit(llama, mask, words):
    embeds, _ = embedded(24, (3, 19), rows=3)
    with refused(words), torch.no_grad(), fitprune.prune(llama, RECIPE, visual_mask=mask):
        llama(inputs_embeds=embeds)
    assert clean(llama)


def test_a_model_without_an_image_token(llama):
    with refused("visual_mask"), fitprune.prune(llama, RECIPE):
        pass


def test_embeds_only_do_not_tell_images(llava):
    embeds, _ = embedded(24, (3, 19))
    with refused("visual_mask"), torch.no_grad(), fitprune.prune(llava, RECIPE):
        llava(inputs_embeds=embeds)


def test_the_decoder_of_an_attached_model_called_directly(llava):
    embeds, _ = embedded(24, (3, 19))
    with refused("visual_mask"), torch.no_grad(), fitprune.prune(llava, RECIPE):
        llava.model.language_model(inputs_embeds=embeds)


def test_attached_twice(llava):
    with fitprune.prune(llava, RECIPE):
        for part in (llava, llava.model):
            with refused("already"), fitprune.prune(part, RECIPE):
                pass
        with torch.no_grad():  # the first one still works
            assert llava(**ROWS[0]).logits.shape[1] == ROWS[0]["input_ids"].shape[1] - 10
    assert clean(llava)


def test_a_model_without_layers():
    with refused("new_family", UnsupportedError), fitprune.prune(torch.nn.Linear(2, 2), RECIPE):
        pass


def test_an_attention_outside_the_registry(llama):
    model = tiny.llama()
    model.model.layers[1].self_attn = torch.nn.Linear(2, 2)
    with refused("registry", UnsupportedError), fitprune.prune(model, RECIPE, visual_mask=torch.ones(1, 4, dtype=torch.bool)):
        pass
    assert clean(model)  # what had been put in place before the error is gone
    assert not [name for name in AttentionInterface._global_mapping if "fitprune" in name]


def test_errors_are_value_errors():
    assert issubclass(UnsupportedError, FitPruneError)
    assert issubclass(FitPruneError, ValueError)
