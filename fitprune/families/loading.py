"""From a path to a checkpoint that can be asked: which layout, which family, where the weights go.

python -c "import fitprune; print(fitprune.load('embedded'))"
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any, cast

from ..checkpoints.original import check_transformers, is_original, read_original
from ..checkpoints.source import Source
from ..distributed.launch import zero_stage
from ..embedded import MODELS, model_path
from ..errors import FitPruneError, first_line
from . import FAMILIES, processor
from .adapter import base_of, merge
from .chat import own_template, say_if_other
from .chat_template import written_as
from .placement import dtype_named, from_transformers, read_config, where
from .protocols import Family, OriginalFamily
from .rehearsal import check_counts
from .vlm import VLM


def load(
    path: str,
    *,
    model_base: str | None = None,
    vision_tower: str | None = None,
    template: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    attn: str | None = None,
    device_map: Any = None,
    tensor_parallel: bool = False,
) -> VLM:
    """Loads a checkpoint with all that is needed to ask it questions, whichever layout it has.

    Args:
        path: A folder or hub name in transformers or original layout, a model that ships with FitPrune ("embedded"), or PEFT's adapter of
            one of these.
        model_base: The language model that a LoRA or projector-only checkpoint was trained on; the model that an adapter was.
        vision_tower: Folder or hub name of CLIP for a checkpoint of the original layout, instead of the one it names.
        template: Conversation template; default the one that the checkpoint was trained with.
        device: "cpu", "cuda", "cuda:1"; default the first GPU, else the CPU.
        dtype: "auto", "float32", "bfloat16", "float16"; default float32 on a CPU, else the checkpoint's.
        attn: Attention implementation, such as "sdpa".
        device_map: As transformers'.
        tensor_parallel: Share the model between the processes of torchrun, which all ask it the same (sharding.py).
    Raises:
        FitPruneError: no such checkpoint, a family that is not known, a damaged or unsafe file; says what to do.
    """
    source, name = Source(model_path(path) if path in MODELS else path), path
    if (base := base_of(source, model_base)) is not None:
        if tensor_parallel or zero_stage():
            raise FitPruneError(f"{path} is an adapter, which is merged into a whole base: merge it with PEFT first to share it out")
        vlm = load(base, vision_tower=vision_tower, template=template, device=device, dtype=dtype, attn=attn, device_map=device_map)
        vlm.name, vlm.model = name, merge(vlm.model, vlm.tokenizer, source)
        return vlm
    config = source.json("config.json")
    device, dtype = where(device, dtype, device_map)
    if tensor_parallel and device_map is not None:
        raise FitPruneError("tensor parallelism places the model itself: leave out --device-map")
    if is_original(config):
        if tensor_parallel or zero_stage():
            raise FitPruneError(
                f"{path} has the original layout, of which every process reads the whole: convert it first (fitprune convert {path} FOLDER)"
            )
        layout = original_family(config, source)
        checkpoint = read_original(source, config, layout, model_base, vision_tower)
        family: Family = layout
        tokenizer, place = checkpoint.tokenizer, None
        model: Any = checkpoint.model(dtype_named(dtype), attn, device, device_map)
    else:
        for option, value in (("--model-base", model_base), ("--vision-tower", vision_tower)):
            if value:
                raise FitPruneError(f"{path} is in transformers layout, whole in itself: leave out {option}")
        family, place = family_of(config, path), source.place
        check_transformers(config, source, whole=family is not processor)
        if family is processor and template:
            raise FitPruneError(f"{path} is asked by the chat template that it brings: leave out --conv-mode {template}")
        kind = family.model_class()
        wanted = read_config(kind, place)
        maker = _maker(family, wanted, place, path)  # what is missing or does not go together is said before the weights are read
        if not zero_stage():  # which makes models in a way of its own
            check_counts(kind, wanted, family.images(wanted, maker), path)
        model, tokenizer = from_transformers(kind, source, device, dtype, attn, device_map, tensor_parallel)
    if place is None:
        maker = _maker(family, model.config, None, path)
    usual = family.template(model.config, tokenizer, name)
    usual = usual and (written_as(tokenizer) or usual)
    if place is not None and usual and not template:
        say_if_other(path, usual, own_template(source, tokenizer), tokenizer)
    return VLM(name, model, tokenizer, template or usual, family, family.images(model.config, maker), usual, maker)


def _maker(family: Family, config: Any, place: str | None, path: str) -> Any:
    """What the family makes inputs of images with."""
    try:
        return family.image_processor(config, place)
    except FitPruneError:
        raise
    except (OSError, ValueError) as error:
        raise FitPruneError(f"cannot load the image processor of {path}: {first_line(error)}") from None


def original_family(config: Mapping[str, Any], source: Source) -> OriginalFamily:
    """The one family that claims a config.json of the original layout.

    Raises:
        FitPruneError: if none does, naming those that are known, or several do, naming them.
    """
    layouts = {name: family for name, module in FAMILIES.items() if hasattr(family := family_in(module), "claims")}
    claiming = [name for name, family in layouts.items() if family.claims(config)]
    if not claiming:
        raise FitPruneError(f"{source} has the original layout, but of no family known here ({', '.join(layouts)}): see docs/new_family.md")
    if len(claiming) > 1:
        raise FitPruneError(
            f"{source}: config.json is claimed by {' and '.join(claiming)}, which no checkpoint is both of: correct its fields"
        )
    return layouts[claiming[0]]


def family_of(config: Mapping[str, Any], path: str) -> Family:
    """The family of a config.json in transformers layout: one of `FAMILIES` that knows it, else its processor's.

    Raises:
        FitPruneError: for one that is no vision-language model of the transformers that is installed.
    """
    kind = str(config.get("model_type"))
    own = family_in(FAMILIES[kind]) if kind in FAMILIES else None
    if own is not None and own.knows(config):
        return own
    if not processor.knows(config):
        import transformers

        raise FitPruneError(
            f"{path} is a {kind!r} model, no vision-language model of transformers {transformers.__version__} and of no family known here "
            f"({', '.join(FAMILIES)}): install a transformers that knows it, or see docs/new_family.md"
        )
    return cast(Family, processor)


def family_in(module: str) -> OriginalFamily:
    """The family that a module of this package defines; one without an original layout has only the names of a `Family`."""
    return cast(OriginalFamily, import_module(f"{__package__}.{module}"))
