"""Where a model lies does not change what is pruned: on a GPU, in 16 bits, spread over devices. On a CPU alone, how a place is named."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from accelerate import dispatch_model
from test_generate import GREEDY
from test_prune import ROWS, close

import fitprune
from fitprune.embedded import embedded
from fitprune.errors import FitPruneError
from fitprune.families.placement import dtype_named, where
from fitprune.questions import read_questions
from fitprune.recipe import RECOMMENDED

GPU = torch.device("cuda", 0)
NAMES = ("embedded", "embedded-next", "embedded-hr", "embedded-qwen")
FEW, SAME = 12, 10  # questions, and how many are to be answered alike in another precision (in bfloat16 on a CPU: all 12)


def test_a_place_is_named() -> None:
    assert where("cpu", None, None) == ("cpu", "float32")
    assert where("cpu", None, "auto") == ("cpu", "auto")
    assert where("cuda:1", "float16", None) == ("cuda:1", "float16")
    assert dtype_named("auto") is None
    assert dtype_named("bfloat16") is torch.bfloat16
    for wrong in ("int8", "nonsense", "Tensor"):
        with pytest.raises(FitPruneError, match="unknown precision"):
            dtype_named(wrong)


def llava() -> Any:
    """The same one each time: `tiny` redraws matrices only."""
    torch.manual_seed(0)
    return tiny.llava()


def alive(trace: Any) -> list[list[list[int]]]:
    return [[row.tolist() for row in rows] for rows in trace.alive]


def pruned(model: Any, inputs: dict[str, Any]) -> tuple[Any, Any, Any]:
    """Survivors, logits of the last token and generated tokens, on the CPU."""
    with torch.no_grad(), fitprune.prune(model, tiny.RECIPE) as trace:
        logits = model(**inputs).logits[:, -1]
        survivors = alive(trace)
        return survivors, logits.float().cpu(), model.generate(**inputs, **GREEDY).cpu()


def over_devices(model: Any, first: Any, second: Any) -> Any:
    """The model with its later decoder layers on another device, as a device_map places them."""
    names = ["model.vision_tower", "model.multi_modal_projector", "model.language_model.embed_tokens", "model.language_model.norm"]
    places = dict.fromkeys([*names, "model.language_model.rotary_emb", "lm_head"], first)
    layers = len(model.model.language_model.layers)
    places |= {f"model.language_model.layers.{at}": first if at < layers // 2 else second for at in range(layers)}
    return dispatch_model(model, places, main_device="cpu", force_hooks=True)


def test_survivors_do_not_depend_on_how_layers_are_placed() -> None:
    """Accelerate's hooks around every module, on the one device that is always there."""
    inputs = tiny.batch([ROWS[0], ROWS[3]])
    wanted, found = pruned(llava(), inputs), pruned(over_devices(llava(), "cpu", "cpu"), inputs)
    assert found[0] == wanted[0]
    assert torch.equal(found[2], wanted[2])


@pytest.mark.gpu
@pytest.mark.parametrize("swapped", [False, True])
def test_survivors_are_those_of_one_device_across_two(swapped: bool) -> None:
    """Half of the layers on the GPU, half on the CPU, either way round."""
    inputs = tiny.batch([ROWS[0], ROWS[3]])
    places = ("cpu", 0) if swapped else (0, "cpu")
    wanted, found = pruned(llava(), inputs), pruned(over_devices(llava(), *places), inputs)
    assert found[0] == wanted[0]
    close(found[1], wanted[1])
    assert torch.equal(found[2], wanted[2])


@pytest.mark.gpu
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_survivors_on_a_gpu_are_those_on_the_cpu(attention: str) -> None:
    inputs = tiny.batch(ROWS)
    wanted = pruned(llava(), inputs)
    model = llava().cuda()
    model.set_attn_implementation(attention)
    found = pruned(model, {name: part.cuda() for name, part in inputs.items()})
    assert found[0] == wanted[0]
    torch.testing.assert_close(found[1], wanted[1], rtol=1e-3, atol=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", tiny.DECODERS)
@pytest.mark.parametrize("score", ["fitprune", "last", RECOMMENDED])
def test_every_kind_of_layer_on_a_gpu(kind: str, score: str) -> None:
    embeds, mask = tiny.embedded(26, (3, 19), rows=2)
    found = []
    for device in ("cpu", GPU):
        model = tiny.decoder(kind).to(device)
        with torch.no_grad(), fitprune.prune(model, tiny.RECIPE, visual_mask=mask, score=score) as trace:
            model(inputs_embeds=embeds.to(device))
        found.append(alive(trace))
    assert found[0] == found[1]


def answers(name: str, device: str, dtype: str, **options: Any) -> list[str]:
    """What an embedded model says to the first embedded questions, dense, then pruned as recommended."""
    vlm, data = fitprune.load(name, device=device, dtype=dtype), embedded()
    asked = [question for question in read_questions(data.questions) if question.image][:FEW]
    recipe = fitprune.Recipe.step(layer=2, keep=0.5)

    def ask() -> list[str]:
        return [vlm.ask(question.text, data.images / str(question.image), max_new_tokens=8) for question in asked]

    dense = ask()
    with fitprune.prune(vlm.model, recipe, score=RECOMMENDED, **options):
        return [*dense, *ask()]


@pytest.mark.gpu
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("graphs", [0, 8])
def test_every_family_answers_in_bfloat16_on_a_gpu(name: str, graphs: int) -> None:
    wanted, found = answers(name, "cpu", "float32"), answers(name, "cuda", "bfloat16", graphs=graphs)
    for part in (slice(FEW), slice(FEW, None)):
        assert sum(ours == theirs for ours, theirs in zip(found[part], wanted[part], strict=True)) >= SAME, (found, wanted)
