"""Answers and survivors of vLLM with the plugin, against `fitprune.prune` on transformers, on an engine in this process.

The recipe is harsh, so that most answers are not the dense model's: a plugin that deleted something else would show.
"""

from __future__ import annotations

import random
from typing import Any

import pytest

pytest.importorskip("vllm.version")  # the folder of these tests has its name

import vllm_engine as small
from vllm_engine import HARSH, NOTHING, Asked, answer, compare, engine, mixed, scheduler, watched, worker

import fitprune


def free_blocks(llm: Any) -> int:
    return scheduler(llm).kv_cache_manager.block_pool.get_num_free_blocks()


@pytest.mark.parametrize("score", ["last", "fitprune", "spread"])
def test_answers_and_survivors_are_those_of_prune(score: str) -> None:
    with engine(HARSH, score) as llm:
        asked, seen, steps = mixed(128, seed=3, images=3), watched(llm), []
        plan, begin = worker(llm).fitprune.plan, worker(llm).fitprune.plan.begin

        def noted(scheduled: Any) -> None:
            begin(scheduled)
            steps.append(len(scheduled))

        plan.begin = noted
        before = free_blocks(llm)
        answer(llm, asked)
        assert free_blocks(llm) == before
        assert max(steps) == 16
        assert len(scheduler(llm).kv_cache_config.kv_cache_groups) == small.LAYERS  # the shortest stage has one layer
    assert sum(not one.images for one in asked) > 10
    assert sum(len(one.images) > 1 for one in asked) > 30
    found = compare(asked, HARSH, score, seen=seen, dense=32)
    assert found.answers == []
    # `spread` ranks by order: two of 128 requests may have a pair of tokens whose relevance differs by less than the attentions do
    assert len(found.survivors) <= 2 * (score == "spread"), found.survivors
    assert found.as_dense < 28


def test_one_picture_asked_about_by_many_at_once() -> None:
    """vLLM encodes it once; what survives depends on the question."""
    (image, text), *others = small.pictures()
    asked = [Asked(text, [image], 12) for _ in range(6)] + [Asked(other, [image], 12) for _, other in others[:10]]
    with engine(HARSH, "last") as llm:
        seen = watched(llm)
        answer(llm, asked)
    found = compare(asked, HARSH, "last", seen=seen)
    assert (found.answers, found.survivors) == ([], {})
    assert len({str(layers) for layers in seen.values()}) > 1


def test_without_cache_groups() -> None:
    with engine(HARSH, "last", fitprune={"kv_groups": False}) as llm:
        asked, seen = mixed(32, seed=4, images=2), watched(llm)
        answer(llm, asked)
        assert type(scheduler(llm)).__name__ == "Scheduler"
    found = compare(asked, HARSH, "last", seen=seen)
    assert (found.answers, found.survivors) == ([], {})


@pytest.mark.parametrize("recipe", [None, fitprune.Recipe.none(small.LAYERS), NOTHING], ids=["none", "zero", "stages"])
def test_nothing_deleted_is_vllm_as_it_is(recipe: fitprune.Recipe | None) -> None:
    with engine(recipe) as llm:
        asked = mixed(24, seed=9)
        answer(llm, asked)
        if recipe is NOTHING:
            assert worker(llm).fitprune.plan.stages.count == 4
    assert compare(asked, None).answers == []


@pytest.mark.parametrize(("groups", "blocks"), [(True, 170), (False, 40)])
def test_preempted_requests_are_computed_again_as_they_were(groups: bool, blocks: int) -> None:
    with engine(HARSH, "last", fitprune={"kv_groups": groups}, num_gpu_blocks_override=blocks, max_model_len=512) as llm:
        holder, preempted = scheduler(llm), []
        preempt = holder._preempt_request

        def noted(request: Any, *args: Any, **kwargs: Any) -> None:
            preempted.append(request.num_tokens - request.num_prompt_tokens)
            preempt(request, *args, **kwargs)

        holder._preempt_request = noted
        asked, before = mixed(20, seed=5, images=2), free_blocks(llm)
        for one in asked:
            one.most = 70
        answer(llm, asked, ignore_eos=True)
        assert free_blocks(llm) == before
    assert len(preempted) > 3
    assert max(preempted) > 3  # tokens of the answer that were computed again
    assert compare(asked, HARSH, "last", endless=True, dense=0).answers == []


def test_blocks_come_back_after_answers_and_aborts() -> None:
    from vllm import SamplingParams

    draw = random.Random(0)
    with engine(HARSH, "last", num_gpu_blocks_override=400) as llm:
        asked, before = mixed(1000, seed=8, images=2), free_blocks(llm)
        waiting = [*enumerate(small.prompts(asked))]
        running: set[str] = set()
        while waiting or llm.llm_engine.has_unfinished_requests():
            while waiting and len(running) < 20:
                number, prompt = waiting.pop()
                sampling = SamplingParams(temperature=0, max_tokens=asked[number].most, ignore_eos=draw.random() < 0.5)
                running.add(llm.llm_engine.add_request(str(number), prompt, sampling) or str(number))
            if running and draw.random() < 0.2:
                gone = draw.choice(sorted(running))
                llm.llm_engine.abort_request([gone])
                running.discard(gone)
            running -= {one.request_id for one in llm.llm_engine.step() if one.finished}
        assert free_blocks(llm) == before
        again = mixed(8, seed=1)
        answer(llm, again)
        assert len(worker(llm).fitprune.plan._known) < 2 * 400
    assert compare(again, HARSH, "last", dense=0).answers == []


def test_more_requests_fit_in_the_same_memory() -> None:
    recipe = fitprune.Recipe.from_deletions([130] + [0] * (small.LAYERS - 1), visual_tokens=small.TOKENS)
    block = 32 * 4 * 48 * 2 * 4  # bytes: tokens, heads, their size, keys and values, float32
    most = {}
    for pruned in (None, recipe):
        with engine(pruned, "last", kv_cache_memory_bytes=64 * small.LAYERS * block, max_num_seqs=64) as llm:
            holder, asked, running = scheduler(llm), mixed(48, seed=2, text_only=0), []
            schedule = holder.schedule

            def noted(*args: Any, holder: Any = holder, schedule: Any = schedule, running: list[int] = running, **kwargs: Any) -> Any:
                result = schedule(*args, **kwargs)
                running.append(len(holder.running))
                return result

            holder.schedule = noted
            for one in asked:
                one.most = 12
            answer(llm, asked, ignore_eos=True)
            most[pruned is not None] = max(running)
    assert most[True] >= 2 * most[False] > 0


def test_a_request_that_is_too_long_is_refused_and_the_engine_lives() -> None:
    from vllm.exceptions import VLLMValidationError

    with engine(HARSH, "last", max_model_len=256) as llm:
        long = Asked("Which number is written? " * 200, [small.pictures()[0][0]], 4)
        with pytest.raises(VLLMValidationError, match="maximum context length is 256"):
            answer(llm, [long])
        asked = mixed(4, seed=1)
        answer(llm, asked)
    assert compare(asked, HARSH, "last", dense=0).answers == []


def test_what_cannot_be_pruned_is_answered_densely() -> None:
    from vllm import SamplingParams

    with engine(HARSH, "last") as llm:
        (one,) = asked = [Asked("What is written?", [small.pictures()[0][0]], 6)]
        (output,) = llm.generate(small.prompts(asked), SamplingParams(temperature=0, max_tokens=6, prompt_logprobs=0), use_tqdm=False)
        one.ids, one.answer = list(output.prompt_token_ids), list(output.outputs[0].token_ids)
    assert compare(asked, None).answers == []


@pytest.mark.parametrize("more", [{"enforce_eager": False}, {"max_num_seqs": 1}], ids=["compiled", "singly"])
def test_other_ways_to_run(more: dict[str, Any]) -> None:
    with engine(HARSH, "last", **more) as llm:
        asked, seen = mixed(24, seed=6), watched(llm)
        answer(llm, asked)
    found = compare(asked, HARSH, "last", seen=seen)
    assert (found.answers, found.survivors) == ([], {})


@pytest.mark.parametrize("groups", [True, False])
def test_an_engine_of_its_own_process_that_speculates(groups: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """n-grams, in a process of its own: within one, vLLM 0.32 cannot make another engine after one that speculates."""
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    speculation = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3}
    with engine(HARSH, "last", fitprune={"kv_groups": groups}, speculative_config=speculation) as llm:
        asked = mixed(32, seed=6)
        answer(llm, asked)
    assert compare(asked, HARSH, "last").answers == []


@pytest.mark.parametrize(("model", "score"), [("embedded-next", "last"), ("embedded-qwen", "last"), ("embedded-qwen", "fitprune")])
def test_other_families(model: str, score: str) -> None:
    with engine(HARSH, score, model=model) as llm:
        asked, seen = mixed(24, seed=7, images=2), watched(llm)
        answer(llm, asked, model)
    found = compare(asked, HARSH, score, model, seen=seen)
    assert (found.answers, found.survivors) == ([], {})
    assert found.as_dense < 16


@pytest.mark.parametrize("score", ["last", "fitprune", "spread"])
def test_heads_of_two_processes(score: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensor parallelism: each process has half of the heads, and ranks by all."""
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    with engine(HARSH, score, tensor_parallel_size=2) as llm:
        asked = mixed(48, seed=6, images=2)
        answer(llm, asked)
    found = compare(asked, HARSH, score)
    assert found.answers == []
    assert found.as_dense < 14
