"""The listening attention function: same result, and the listener is shown what the implementation got."""

from types import SimpleNamespace

import pytest
import tiny
import torch
from transformers import AttentionInterface
from transformers.models.llama.modeling_llama import ALL_ATTENTION_FUNCTIONS

from fitprune.decoder.attention import check_implementation, listening
from fitprune.decoder.upstream import STATE_KEY, attention_registry
from fitprune.errors import UnsupportedError


class Ear:
    def __init__(self):
        self.heard_all = []

    def on_attention(self, query, key, value, scaling, mask, logsumexp=None, heads=None):
        self.heard_all.append((query, key, value, scaling, mask))


@pytest.fixture
def tensors():
    return torch.randn(2, 4, 5, 8), torch.randn(2, 2, 5, 8), torch.randn(2, 2, 5, 8)


@pytest.mark.parametrize("name", ["sdpa", "eager"])
def test_the_result_is_the_implementations(llama, tensors, name):
    module = llama.model.layers[0].self_attn
    config = SimpleNamespace(_attn_implementation=name)
    mask = torch.zeros(2, 1, 5, 5)
    ear = Ear()
    out, weights = listening(config)(module, *tensors, mask, scaling=0.3, dropout=0.0, **{STATE_KEY: ear})
    if name == "sdpa":
        wanted = ALL_ATTENTION_FUNCTIONS["sdpa"](module, *tensors, mask, scaling=0.3, dropout=0.0)
    else:
        from transformers.models.llama.modeling_llama import eager_attention_forward

        wanted = eager_attention_forward(module, *tensors, mask, scaling=0.3, dropout=0.0)
    assert torch.equal(out, wanted[0])
    assert (weights is None) == (wanted[1] is None)
    query, key, value, scaling, seen_mask = ear.heard_all[0]
    assert query is tensors[0]
    assert key is tensors[1]
    assert value is tensors[2]
    assert seen_mask is mask
    assert scaling == 0.3


def test_nobody_listens(llama, tensors):
    module = llama.model.layers[0].self_attn
    function = listening(SimpleNamespace(_attn_implementation="sdpa"))
    assert torch.equal(function(module, *tensors, None)[0], ALL_ATTENTION_FUNCTIONS["sdpa"](module, *tensors, None)[0])


def test_scaling_by_default(llama, tensors):
    ear = Ear()
    listening(SimpleNamespace(_attn_implementation="sdpa"))(llama.model.layers[0].self_attn, *tensors, None, **{STATE_KEY: ear})
    assert ear.heard_all[0][3] == 8**-0.5


def test_the_implementation_sees_the_models_own_config(llama, tensors):
    seen = []

    def spy(module, query, key, value, mask, **kwargs):
        seen.append((module.config, module.layer_idx, set(kwargs)))
        return query, None

    AttentionInterface.register("spying", spy)
    try:
        config = SimpleNamespace(_attn_implementation="spying", mine=True)
        listening(config)(llama.model.layers[2].self_attn, *tensors, None, scaling=1.0, **{STATE_KEY: Ear()})
    finally:
        AttentionInterface._global_mapping.pop("spying")
    assert seen == [(config, 2, {"scaling"})]  # nothing of ours is handed on


@pytest.mark.parametrize("name", ["softcap", "s_aux", "position_bias"])
def test_attention_that_scores_do_not_know(llama, tensors, name):
    function = listening(SimpleNamespace(_attn_implementation="sdpa"))
    module = llama.model.layers[0].self_attn
    with pytest.raises(UnsupportedError, match=name):
        function(module, *tensors, None, **{name: 5.0, STATE_KEY: Ear()})


def test_implementations():
    for name in (None, "sdpa", "eager", "flash_attention_2", "flash_attention_3", "kernels-community/flash-attn2"):
        check_implementation(name)
    for name in ("flex_attention", "paged|sdpa", "paged|flash_attention_2"):
        with pytest.raises(UnsupportedError, match="sdpa"):
            check_implementation(name)


def test_registry(llama):
    assert attention_registry(llama.model.layers[0].self_attn) is ALL_ATTENTION_FUNCTIONS
    for foreign in (torch.nn.Linear(2, 2), torch.nn.MultiheadAttention(4, 2)):
        assert attention_registry(foreign) is None
    assert len(llama.model.layers) == tiny.LAYERS
