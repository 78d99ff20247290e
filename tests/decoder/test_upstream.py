"""What is relied on in transformers is found by what it is; what is missing is refused before anything runs."""

import importlib
import inspect
import logging
import re
from pathlib import Path
from types import FunctionType

import pytest
import tiny
import torch
import transformers
from test_limits import refused
from tiny import RECIPE, embedded
from torch import nn
from transformers import DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast

import fitprune
from fitprune import UnsupportedError
from fitprune.decoder import cache as kv
from fitprune.decoder import upstream
from fitprune.decoder.attach import attachment_of
from fitprune.errors import FitPruneError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def case():
    embeds, mask = embedded(24, (3, 19))
    return tiny.llama(), embeds, mask


# ---- versions -------------------------------------------------------------------------------------------------------


def test_the_versions_that_are_claimed_are_those_that_ran():
    project = (ROOT / "pyproject.toml").read_text()
    (claimed,) = re.findall(r'"transformers(>=[\d.]+,<[\d.]+)"', project)
    oldest, newest = upstream.version_numbers(upstream.RAN[0]), upstream.version_numbers(upstream.RAN[-1])
    assert claimed == f">={oldest[0]}.{oldest[1]},<{newest[0]}.{newest[1] + 1}"
    assert list(upstream.RAN) == sorted(upstream.RAN, key=upstream.version_numbers)
    assert f"transformers=={upstream.RAN[-1]}" in (ROOT / "constraints.txt").read_text().split()
    line = next(line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("Tests passed"))
    for version in upstream.RAN:
        assert re.search(rf"\b{re.escape(version.removesuffix('.0'))}\b", line), version


@pytest.mark.parametrize(("version", "said"), [("5.24.0.dev0", 0), (upstream.RAN[0], 0), (upstream.RAN[-1], 0), ("5.100.0", 1), ("6.0", 1)])
def test_a_newer_version_is_said_once(version, said, caplog):
    upstream._said.clear()
    with caplog.at_level(logging.WARNING, logger="fitprune"):
        upstream.say_if_newer(version)
        upstream.say_if_newer(version)
    assert len(caplog.messages) == said
    assert all(version in line and upstream.RAN[-1] in line and "\n" not in line for line in caplog.messages)


# ---- finding ---------------------------------------------------------------------------------------------------------


def test_decoder_layers_of_transformers_say_where_their_cache_comes_in():
    """One argument is annotated with it, or none."""
    names = set()
    for file in sorted((Path(transformers.__file__).parent / "models").glob("*/modeling_*.py")):
        if "DecoderLayer(" not in file.read_text(encoding="utf-8"):
            continue
        try:
            module = importlib.import_module(f"transformers.models.{file.parent.name}.{file.stem}")
        except Exception:  # it needs a package, or another torch
            continue
        for name, kind in vars(module).items():
            if name.endswith("DecoderLayer") and inspect.isclass(kind) and kind.__module__ == module.__name__:
                annotated = [name for name, one in inspect.signature(kind.forward).parameters.items() if "Cache" in str(one.annotation)]
                assert len(annotated) <= 1, kind
                names.update(annotated)
    assert names


def test_the_cache_is_found_under_any_name():
    class Renamed(nn.Module):
        def forward(self, hidden_states, memory: "transformers.Cache | None" = None):
            pass

    class Unannotated(nn.Module):
        def forward(self, hidden_states, past_key_values=None):
            pass

    class Uncached(nn.Module):
        def forward(self, hidden_states, use_cache=False):
            pass

    assert upstream.cache_argument(Renamed()) == "memory"
    assert upstream.cache_argument(Unannotated()) == "past_key_values"
    assert upstream.cache_argument(Uncached()) is None
    cache = DynamicCache()
    assert upstream.cache_in({"use_cache": True, "memory": cache}) is cache
    assert upstream.cache_in((1, cache)) is cache
    assert upstream.cache_in({"use_cache": True}) is None
    assert upstream.cache_in(None) is None
    assert upstream.cache_in(upstream.output_with_cache(None, cache)) is cache
    assert isinstance(upstream.output_with_cache(None, cache), BaseModelOutputWithPast)


# ---- the table ------------------------------------------------------------------------------------------------------


def test_everything_of_the_table_holds_here(case):
    model, *_ = case
    upstream.check(model.model, list(model.model.layers))
    assert all(upstream.attention_of(layer) is layer.self_attn for layer in model.model.layers)
    for one in upstream.TABLE:
        assert one.what
        assert one.purpose


def without(module, name):
    """Gives a module a class whose forward lost one parameter (`kwargs` for its keywords), as a release might."""
    cls = type(module)
    signature = inspect.signature(cls.forward)
    left = [one for other, one in signature.parameters.items() if other != name]
    assert len(left) < len(signature.parameters), name

    forward = FunctionType(ran.__code__, inspect.unwrap(cls.forward).__globals__, "forward")
    forward.__signature__ = signature.replace(parameters=left)
    module.__class__ = type(cls.__name__, (cls,), {"forward": forward})


def ran(self, *args, **kwargs):
    raise AssertionError("ran before it was checked")


LOSSES = [
    ("decoder", "cache", "a cache from an earlier turn"),
    ("decoder", "attention_mask", "inputs_embeds and attention_mask"),
    ("decoder", "inputs_embeds", "inputs_embeds and attention_mask"),
    ("decoder", "kwargs", "keyword arguments for its layers"),
    ("layer", "cache", "the tokens that a layer holds"),
    ("layer", "attention_mask", "attention_mask"),
    ("layer", "kwargs", "keyword arguments for its attention"),
    ("attention", "kwargs", "keyword arguments for its function"),
]


@pytest.mark.parametrize(("of", "name", "words"), LOSSES)
def test_what_is_missing_is_refused_before_anything_runs(case, of, name, words):
    model, _, mask = case
    subject = {"decoder": model.model, "layer": model.model.layers[1], "attention": model.model.layers[1].self_attn}[of]
    without(subject, upstream.cache_argument(subject) if name == "cache" else name)
    with refused(words, UnsupportedError), fitprune.prune(model, RECIPE, visual_mask=mask):
        pass
    with pytest.raises(UnsupportedError) as error:
        fitprune.attach(model, RECIPE, visual_mask=mask)
    for word in (transformers.__version__, *upstream.RAN, type(subject).__name__, "docs/new_family.md"):
        assert word in str(error.value)
    assert attachment_of(model) is None


def test_caches_of_another_kind_are_refused_before_anything_runs(case, monkeypatch):
    model, _, mask = case
    monkeypatch.setattr(upstream, "_cache_layers_as_known", lambda: False)
    with refused("DynamicLayer", UnsupportedError), fitprune.prune(model, RECIPE, visual_mask=mask):
        pass


def test_a_config_that_keeps_its_implementation(case, monkeypatch):
    model, _, mask = case
    monkeypatch.setattr(upstream, "use_implementation", lambda config, name: False)
    with refused("names the implementation", UnsupportedError), fitprune.prune(model, RECIPE, visual_mask=mask):
        pass


# ---- what no check beforehand can see -------------------------------------------------------------------------------


def pruned_cache(model, embeds, mask):
    cache = DynamicCache()
    with torch.no_grad(), fitprune.prune(model, RECIPE, visual_mask=mask):
        model(inputs_embeds=embeds, **{upstream.cache_argument(model): cache})
    assert kv.is_pruned(cache)
    return cache


def test_a_pruned_cache_without_its_notes_is_an_error(case):
    """In whatever way it got there: outside of the block, in another model, copied tensor by tensor, or hidden from us."""
    model, embeds, mask = case
    name = upstream.cache_argument(model)
    token = torch.tensor([[5]])
    for other in (model, tiny.llama(seed=3)):
        with torch.no_grad(), refused("pruned cache", UnsupportedError):
            other(input_ids=token, **{name: pruned_cache(model, embeds, mask)})
    copied = DynamicCache()
    for index, layer in enumerate(pruned_cache(model, embeds, mask).layers):
        copied.update(layer.keys, layer.values, index)
    with torch.no_grad(), fitprune.prune(model, RECIPE, visual_mask=mask), refused("no notes", UnsupportedError):
        model(input_ids=token, **{name: copied})


def test_a_cache_that_is_hidden_from_us_is_an_error(case, monkeypatch):
    """A release that hands the layers something that we do not take for a cache: nothing was narrowed by it, nothing noted."""
    model, embeds, mask = case
    cache = pruned_cache(model, embeds, mask)
    name = upstream.cache_argument(model)
    with torch.no_grad(), fitprune.prune(model, RECIPE, visual_mask=mask):
        before = model(input_ids=torch.tensor([[5]]), **{name: cache}).logits
        monkeypatch.setattr("fitprune.decoder.layer.cache_in", lambda values: None)
        with refused("pruned cache", UnsupportedError):
            model(input_ids=torch.tensor([[6]]), **{name: cache})  # decoding
        with refused("keeps its cache", UnsupportedError):
            model(inputs_embeds=embeds)  # a prefill that deletes
        assert model(inputs_embeds=embeds, use_cache=False).logits.shape[1] < embeds.shape[1]
        monkeypatch.undo()
        fresh = pruned_cache_inside(model, embeds, name)
        assert torch.equal(model(input_ids=torch.tensor([[5]]), **{name: fresh}).logits, before)


def pruned_cache_inside(model, embeds, name):
    cache = DynamicCache()
    model(inputs_embeds=embeds, **{name: cache})
    return cache


def test_an_error_names_no_traceback_for_missing_classes():
    with pytest.raises(FitPruneError, match=r"AttentionInterface.*install one of these") as error:
        upstream.refuse("cannot import name 'AttentionInterface' from 'transformers'", "attention functions")
    assert "\n" not in str(error.value)
