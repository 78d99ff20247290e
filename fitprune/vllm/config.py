"""vLLM's configuration where a recipe is given: what cannot go along is switched off with a line, or refused if it was asked for.

`EngineArgs.create_engine_config` is wrapped, the one place that knows what a user set and what is a default. What it returns travels to all
processes: the recipe as data, and the names of our worker and scheduler classes, made on top of those that vLLM chose.

    pytest tests/vllm/test_settings.py
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Iterator
from typing import Any

from ..cost import CostModel
from ..errors import FitPruneError, UnsupportedError
from . import KEY, interfaces
from .requests import Stages
from .settings import Settings

log = logging.getLogger(__name__)
RUNNER = "VLLM_USE_V2_MODEL_RUNNER"
MANY = 9  # stages; with more, metadata takes about a millisecond of a step
WHY = {
    "enable_prefix_caching": ("prefix caching", "which tokens of an image survive depends on the question after it"),
    "enable_chunked_prefill": ("chunked prefill", "tokens are ranked by what the whole prompt attends to"),
}


def install() -> None:
    """Wraps vLLM's making of its configuration, once."""
    from vllm.engine.arg_utils import EngineArgs

    original = EngineArgs.create_engine_config
    if getattr(original, "fitprune", False):
        return

    @functools.wraps(original)
    def create_engine_config(self: Any, *args: Any, **kwargs: Any) -> Any:
        settings = Settings.read(self.additional_config)
        if settings is None:
            return original(self, *args, **kwargs)
        interfaces.check_version()
        switch_off(self)
        config = original(self, *args, **kwargs)
        prepare(config, settings)
        return config

    create_engine_config.fitprune = True  # type: ignore[attr-defined]
    EngineArgs.create_engine_config = create_engine_config


def switch_off(arguments: Any) -> None:
    """Before vLLM resolves its arguments: what it would switch on by itself stays off.

    Raises:
        UnsupportedError: for what was switched on by hand.
    """
    for name, (what, why) in WHY.items():
        if getattr(arguments, name):
            raise UnsupportedError(f"{what} does not go with pruning: {why}; leave out --{name.replace('_', '-')}")
        if getattr(arguments, name) is None:
            log.warning("fitprune: %s is switched off: %s", what, why)
        setattr(arguments, name, False)
    if os.environ.get(RUNNER, "0") not in ("0", ""):
        raise UnsupportedError(f"pruning was never run on Model Runner V2: unset {RUNNER}")
    os.environ[RUNNER] = "0"


def prepare(config: Any, settings: Settings) -> None:
    """After vLLM resolved its configuration: it is checked, and carries what the other processes need.

    Raises:
        FitPruneError: a recipe for another model. UnsupportedError: what pruning cannot do here.
    """
    for what, why in refusals(config):
        raise UnsupportedError(f"{what} does not go with pruning: {why}")
    stages = check_recipe(config, settings)
    parallel, scheduler = config.parallel_config, config.scheduler_config
    groups = settings.kv_groups and _can_group(scheduler)
    config.additional_config = {**config.additional_config, KEY: {**settings.to_dict(), "kv_groups": groups}}
    parallel.worker_cls = f"{__package__}.worker.on__{parallel.worker_cls.replace('.', '__')}"
    if groups:
        kind = "PrunedAsyncScheduler" if scheduler.async_scheduling else "PrunedScheduler"
        scheduler.scheduler_cls = f"{__package__}.scheduler.{kind}"
    if stages.count > MANY:
        log.warning(
            "fitprune: this recipe deletes in %d steps, each of which costs time in every step of vLLM: merge some", stages.count - 1
        )
    recipe = settings.recipe
    log.warning(
        "fitprune: visual tokens are pruned (%s%s, ranked by %s), deleted tokens %s cache memory",
        recipe.source, f", {recipe.achieved:.0%} of visual compute saved" if recipe.achieved else "",
        recipe.ranked_by(settings.score), "take no" if groups else "still take",
    )  # fmt: skip


def _can_group(scheduler: Any) -> bool:
    """Whether deleted tokens can give their cache memory back; the reason is said if not."""
    reason = None
    if scheduler.scheduler_cls is not None:
        reason = "another scheduler class is asked for"
    elif scheduler.disable_hybrid_kv_cache_manager:
        reason = "the hybrid KV cache manager is disabled"
    elif lacking := interfaces.missing(interfaces.GROUPS):
        reason = f"this vLLM lacks {', '.join(lacking)}"
    if reason:
        log.warning("fitprune: deleted tokens keep their cache memory, only compute is saved: %s", reason)
    return reason is None


def check_recipe(config: Any, settings: Settings) -> Stages:
    """What the recipe makes of the model's layers; FitPruneError where it is not for this model."""
    stages = Stages(settings.recipe, config.model_config.get_total_num_hidden_layers())
    if settings.recipe.cost is not None:
        settings.recipe.check_model(CostModel.from_config(config.model_config.hf_text_config))
    return stages


def refusals(config: Any) -> Iterator[tuple[str, str]]:
    """What does not go along, and why, in words."""
    untried = "it was never tried together"
    model, parallel, cache = config.model_config, config.parallel_config, config.cache_config
    if model.runner_type != "generate":
        yield "pooling", "only answers were compared"
    if not model.is_multimodal_model:
        yield f"{model.architecture}", "it takes no images"
    if model.is_encoder_decoder:
        yield "an encoder-decoder", "its images are read by cross-attention"
    if model.use_mla:
        yield "latent attention (MLA)", untried
    if model.is_hybrid or model.is_attention_free:
        yield "a model with layers that have no attention", untried
    if model.is_mm_prefix_lm:
        yield "attention in which images see themselves both ways", "its ranges of positions are not moved"
    for name in ("pipeline_parallel_size", "prefill_context_parallel_size", "decode_context_parallel_size", "data_parallel_size"):
        if getattr(parallel, name, 1) > 1:
            yield name.removesuffix("_size").replace("_", " "), untried
    if parallel.enable_dbo or parallel.use_ubatching:
        yield "microbatching", "a batch would be split at tokens that are gone"
    for name, what in (("lora_config", "LoRA"), ("kv_transfer_config", "a KV connector"), ("ec_transfer_config", "an encoder connector")):
        if getattr(config, name, None) is not None:
            yield what, untried
    speculative = config.speculative_config
    if speculative is not None and speculative.method != "ngram":
        yield f"speculation by {speculative.method}", "the drafter would read zeros where tokens are gone; ngram goes"
    if cache.kv_sharing_fast_prefill:
        yield "kv_sharing_fast_prefill", untried
    if cache.cache_dtype not in ("auto", "float16", "bfloat16", "float32"):
        yield f"a cache of {cache.cache_dtype}", untried
    if getattr(model.multimodal_config, "video_pruning_rate", None):
        yield "video_pruning_rate", "two ways of pruning would count each other's tokens"


def settings_of(config: Any) -> Settings:
    """The settings in a configuration that `prepare` went through."""
    settings = Settings.read(config.additional_config)
    if settings is None:
        raise FitPruneError(f'additional_config has lost "{KEY}"')
    return settings
