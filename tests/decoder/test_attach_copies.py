"""What people do to a model while a recipe is attached: a copy is refused by name, saving and moving are as without it."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

import fitprune
from fitprune.decoder.attach import attachment_of
from fitprune.errors import UnsupportedError

INPUTS = tiny.prompt(3, "image", 5)

COPIES: dict[str, Callable[[Any], Any]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": pickle.dumps,
    "torch.save": lambda model: torch.save(model, io.BytesIO()),
    "multiprocessing": ForkingPickler.dumps,
    "DataParallel": lambda model: model._replicate_for_data_parallel(),  # of every module, which torch.nn.parallel.replicate calls
}
PARTS: dict[str, Callable[[Any], Any]] = {
    "model": lambda model: model,
    "without its head": lambda model: model.model,
    "vision tower": lambda model: model.model.vision_tower,
    "decoder": lambda model: model.model.language_model,
    "layer": lambda model: model.model.language_model.layers[1],
    "attention": lambda model: model.model.language_model.layers[1].self_attn,
}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("way", COPIES)
def test_a_copy_is_refused_while_a_recipe_is_attached(way: str, part: str) -> None:
    llava = tiny.llava()  # one that gave attentions once has hooks of transformers' own that cannot be pickled
    module = PARTS[part](llava)
    with fitprune.prune(llava, tiny.RECIPE), pytest.raises(UnsupportedError, match=r"attached to this model.*detach"):
        COPIES[way](module)
    COPIES[way](module)


def test_what_holds_the_model_is_not_copied_either(llava: Any) -> None:
    with fitprune.prune(llava, tiny.RECIPE), pytest.raises(UnsupportedError, match="detach"):
        copy.deepcopy({"pipeline": [torch.nn.Sequential(llava)]})


def test_a_copy_made_afterwards_has_nothing_of_it(llava: Any) -> None:
    with fitprune.prune(llava, tiny.RECIPE):
        pass
    clone = copy.deepcopy(llava)
    assert attachment_of(clone) is None
    with torch.no_grad():
        wanted = llava(**INPUTS).logits
        with fitprune.prune(llava, tiny.RECIPE):
            assert torch.equal(clone(**INPUTS).logits, wanted)
        with fitprune.prune(clone, tiny.RECIPE):
            assert torch.equal(llava(**INPUTS).logits, wanted)
            assert clone(**INPUTS).logits.shape[1] < wanted.shape[1]


def test_saving_is_as_without_it(llava: Any, tmp_path: Path) -> None:
    state = llava.state_dict()
    llava.save_pretrained(tmp_path / "before")
    with fitprune.prune(llava, tiny.RECIPE):
        assert llava.state_dict().keys() == state.keys()
        llava.save_pretrained(tmp_path / "attached")
    for file in (tmp_path / "before").iterdir():
        assert (tmp_path / "attached" / file.name).read_bytes() == file.read_bytes()
    loaded = type(llava).from_pretrained(tmp_path / "attached").eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(**INPUTS).logits, llava(**INPUTS).logits)


def test_a_model_may_change_its_precision_under_a_recipe(llava: Any) -> None:
    model = copy.deepcopy(llava)
    with torch.no_grad(), fitprune.prune(model, tiny.RECIPE) as trace:
        wanted = model(**INPUTS).logits
        alive = [layer[0].tolist() for layer in trace.alive]
        model.double()
        got = model(**{key: value.double() if value.is_floating_point() else value for key, value in INPUTS.items()}).logits
        assert got.dtype == torch.float64
        assert [layer[0].tolist() for layer in trace.alive] == alive
    torch.testing.assert_close(got.float(), wanted, atol=1e-4, rtol=1e-4)


def test_a_wrapper_of_pytorch_is_told_from_a_strange_model(llava: Any) -> None:
    wrapper = torch.nn.DataParallel(llava)
    with pytest.raises(UnsupportedError, match=r"DataParallel is a wrapper: give the model inside, its \.module"):
        fitprune.attach(wrapper, tiny.RECIPE)
    with torch.no_grad(), fitprune.prune(wrapper.module, tiny.RECIPE) as trace:
        wrapper(**INPUTS)  # on one device it calls the model
    assert len(trace.visual[-1][0]) < tiny.IMAGE_TOKENS


@pytest.mark.rest
def test_a_model_compiled_before_or_after_is_pruned(llava: Any) -> None:
    model = copy.deepcopy(llava)
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        dense = compiled(**INPUTS).logits  # what was compiled without a recipe must not be run with one
        with fitprune.prune(llava, tiny.RECIPE):
            wanted = llava(**INPUTS).logits
        for target in (model, compiled):
            with fitprune.prune(target, tiny.RECIPE):
                torch.testing.assert_close(compiled(**INPUTS).logits, wanted)
            torch.testing.assert_close(compiled(**INPUTS).logits, dense)
