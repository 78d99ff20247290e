"""What tests of the plugin share: an engine in this process, requests of all kinds, and the same prompts on transformers as oracle."""

from __future__ import annotations

import gc
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import fitprune
from fitprune.embedded import MODELS, embedded, model_path
from fitprune.questions import read_questions

LAYERS, TOKENS = 9, 144
HARSH = fitprune.Recipe.from_deletions([110, 10, 0, 8, 0, 4, 0, 2, 0], visual_tokens=TOKENS)
NOTHING = fitprune.Recipe(  # several stages, and too small a share of 144 tokens for any to go
    counts=(0.001, 0.0, 0.001, 0.0, 0.001, 0.0, 0.0, 0.0, 0.0), visual_tokens=1, scaling="fraction", num_layers=LAYERS
)


@dataclass
class Asked:
    """A request: prompt text, its images, how many tokens at most, and what came of it."""

    text: str
    images: list[Image.Image]
    most: int
    ids: list[int] = field(default_factory=list)  # of the prompt, as vLLM expanded it
    answer: list[int] = field(default_factory=list)
    name: str = ""
    chatted: bool = False  # whether a server made the prompt, which puts no token ahead of the template


@cache
def pictures() -> list[tuple[Image.Image, str]]:
    """Images with a question each, of several benchmarks."""
    found = []
    for file, folder in ((embedded().questions, embedded().images), (embedded().calibration, embedded().calibration_images)):
        for question in read_questions(file):
            if question.image:
                found.append((Image.open(Path(folder) / question.image).convert("RGB"), question.text))
    assert len(found) > 90
    return found


def mixed(count: int, seed: int = 0, images: int = 1, text_only: float = 0.2) -> list[Asked]:
    """Requests with an image, some without, some with up to `images`, of unlike sizes and lengths of answers."""
    draw = random.Random(seed)
    shown, asked = pictures(), []
    for index in range(count):
        image, text = shown[index % len(shown)]
        if draw.random() < 0.4:
            image = image.resize((draw.randrange(60, 400), draw.randrange(60, 400)))
        if draw.random() < text_only:
            asked.append(Asked(text, [], draw.randrange(2, 12)))
            continue
        extra = [draw.choice(shown)[0] for _ in range(draw.randrange(images))]
        asked.append(Asked(text + " and again" * draw.randrange(3), [image, *extra], draw.randrange(2, 24)))
    return asked


def written(one: Asked, model: str) -> str:
    """The prompt as the model's chat template writes it."""
    content = [{"type": "image"} for _ in one.images] + [{"type": "text", "text": one.text}]
    return loaded(model)[1].apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)


def prompts(asked: list[Asked], model: str = "embedded") -> list[dict[str, Any]]:
    """For `LLM.generate`."""
    made = []
    for one in asked:
        prompt: dict[str, Any] = {"prompt": written(one, model)}
        if one.images:
            prompt["multi_modal_data"] = {"image": one.images if len(one.images) > 1 else one.images[0]}
        made.append(prompt)
    return made


def folder(model: str) -> str:
    """A model that ships, by name, or the folder of another."""
    return str(model_path(model)) if model in MODELS else model


@contextmanager
def engine(recipe: fitprune.Recipe | None = None, score: str | None = None, *, model: str = "embedded", **more: Any) -> Iterator[Any]:
    """A small vLLM engine in this process (or where `VLLM_ENABLE_V1_MULTIPROCESSING` says)."""
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    from vllm import LLM

    if recipe is not None:
        import json

        said = {"recipe": json.loads(recipe.to_bytes()), "score": score, **more.pop("fitprune", {})}
        more["additional_config"] = {"fitprune": said}
    settings: dict[str, Any] = {
        "dtype": "float32", "enforce_eager": True, "max_model_len": 1024, "max_num_seqs": 16, "kv_cache_memory_bytes": 1 << 28,
        "block_size": 32, "limit_mm_per_prompt": {"image": 4}, "seed": 0,
    }  # fmt: skip
    llm = LLM(folder(model), **(settings | more))
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()
        del llm
        gc.collect()
        from vllm.distributed import cleanup_dist_env_and_memory

        cleanup_dist_env_and_memory()


def worker(llm: Any) -> Any:
    """The worker of an engine in this process."""
    return llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker


def scheduler(llm: Any) -> Any:
    return llm.llm_engine.engine_core.engine_core.scheduler


def answer(llm: Any, asked: list[Asked], model: str = "embedded", **more: Any) -> None:
    """Asks all at once; prompts' ids and answers are noted."""
    from vllm import SamplingParams

    sampling = [SamplingParams(temperature=0, max_tokens=one.most, **more) for one in asked]
    for one, output in zip(asked, llm.generate(prompts(asked, model), sampling, use_tqdm=False), strict=True):
        one.ids, one.answer, one.name = list(output.prompt_token_ids), list(output.outputs[0].token_ids), output.request_id


@cache
def loaded(model: str = "embedded") -> tuple[Any, Any]:
    """transformers' model, and the processor that vLLM uses as well."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    path = folder(model)
    return AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32).eval(), AutoProcessor.from_pretrained(path)


def oracle(
    one: Asked, recipe: fitprune.Recipe | None, score: str | None = None, model: str = "embedded", endless: bool = False
) -> tuple[list[int], Any]:
    """The greedy answer of `fitprune.prune` on transformers to the same token ids, and its trace."""
    network, processor = loaded(model)
    inputs = processor(text=[written(one, model)], images=one.images or None, return_tensors="pt", add_special_tokens=not one.chatted)
    assert one.chatted or inputs["input_ids"][0].tolist() == one.ids
    pruning = nullcontext() if recipe is None else fitprune.prune(network, recipe, score=score)
    with torch.no_grad(), pruning as trace:
        made = network.generate(**inputs, do_sample=False, max_new_tokens=one.most, **({"eos_token_id": None} if endless else {}))
    return made[0, inputs["input_ids"].shape[1] :].tolist(), trace


@dataclass
class Compared:
    """Requests whose answers, and whose survivors in any layer, are not the oracle's; how many have images, and answer as dense would."""

    answers: list[int] = field(default_factory=list)
    survivors: dict[int, dict[int, tuple[list[int], list[int]]]] = field(default_factory=dict)
    images: int = 0
    as_dense: int = 0


def compare(
    asked: list[Asked],
    recipe: fitprune.Recipe | None,
    score: str | None = None,
    model: str = "embedded",
    *,
    endless: bool = False,
    seen: dict[str, dict[int, list[int]]] | None = None,
    dense: int = 16,
    texts: list[str] | None = None,
) -> Compared:
    """Against the oracle, request by request.

    Args:
        seen: Survivors that vLLM kept, by request and layer (`watched`). dense: How many requests are answered without pruning as well.
        texts: What was answered, where only that is known.
    """
    found = Compared()
    for index, one in enumerate(asked):
        answer, trace = oracle(one, recipe, score, model, endless)
        said = one.answer if texts is None else texts[index].strip()
        if said != (answer if texts is None else loaded(model)[1].decode(answer, skip_special_tokens=True).strip()):
            found.answers.append(index)
        if not one.images:
            continue
        found.images += 1
        if found.images <= dense and recipe is not None:
            found.as_dense += oracle(one, None, None, model, endless)[0] == answer
        if seen is None:
            continue
        kept = next(layers for name, layers in seen.items() if name == one.name or name.startswith(f"{one.name}-"))
        for layer, ours in kept.items():
            if ours != (theirs := trace.alive[layer][0].tolist()):
                found.survivors.setdefault(index, {})[layer] = (sorted({*ours} - {*theirs}), sorted({*theirs} - {*ours}))
    return found


def watched(llm: Any) -> dict[str, dict[int, list[int]]]:
    """Filled with survivors of every request and deleting layer from now on."""
    seen: dict[str, dict[int, list[int]]] = {}
    worker(llm).fitprune.watch = lambda name, layer, left: seen.setdefault(name, {}).__setitem__(layer, left.tolist())
    return seen
