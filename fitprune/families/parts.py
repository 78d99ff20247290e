"""A checkpoint's own processor (images and text → model inputs), put together of its parts, so that images need no torchvision.

transformers 5 makes a processor of an image processor, a tokenizer and, in many classes, a video processor, and the last exists only where
torchvision is installed: without it `AutoProcessor` fails for Qwen2.5-VL, InternVL or LLaVA-OneVision although nobody asks about a video.
Here each part is loaded by itself. The image processor is the one that uses Pillow wherever there is one, with torchvision installed or
not, as in the LLaVA families: an image then gives the same pixels on every machine. The video processor is transformers' own if torchvision
is there, else something that says so when it is used. Left out: processors that are code of the checkpoint's own, which is not run.

    pytest tests/families/test_processor.py
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from ..checkpoints.source import Source, read_json
from ..errors import FitPruneError, explained, first_line

FILES = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json")  # where the class may be named, in this order
TORCHVISION = "needs torchvision: pip install 'fitprune[video]'"
VIDEO = "video_processor"


def has_torchvision() -> bool:
    """Whether transformers finds torchvision."""
    from transformers.utils import is_torchvision_available

    return bool(is_torchvision_available())


def processor_class(source: Source, config: Any) -> Any:
    """The class of a checkpoint's processor, by its files, else by its model type.

    Raises:
        FitPruneError: if there is none, it is code of the checkpoint's own, or it cannot be imported without torchvision.
    """
    import transformers
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

    said = [read_json(path) for path in map(source.get, FILES) if path is not None]
    name = next((one["processor_class"] for one in said if one.get("processor_class")), PROCESSOR_MAPPING_NAMES.get(config.model_type))
    if name is None or not said:
        raise FitPruneError(f"{source} has no processor (processor_config.json or preprocessor_config.json), which makes its inputs")
    try:
        kind = getattr(transformers, str(name), None)
    except ModuleNotFoundError as error:
        raise FitPruneError(f"{name}, the processor of {source}, {TORCHVISION} ({first_line(error.__cause__ or error)})") from None
    if kind is None and any(one.get("auto_map") for one in said):
        raise FitPruneError(
            f"{name}, the processor of {source}, is code of its own, which is not run: use a version in transformers' layout"
        )
    if kind is None:
        raise FitPruneError(f"transformers {transformers.__version__} has no {name}, the processor of {source}: install a newer one")
    if getattr(kind, "is_dummy", False):
        raise FitPruneError(f"{name}, the processor of {source}, {TORCHVISION}")
    return kind


def load_processor(source: Source, config: Any) -> Any:
    """The processor of a checkpoint, with the image processor that uses Pillow where there is one.

    Raises:
        FitPruneError: missing or damaged files, a package that is not there; in one line.
    """
    kind = processor_class(source, config)
    with explained(f"cannot load the processor of {source}"):
        settings, options = kind.get_processor_dict(source.place)
        parts = [_part(kind, name, source) for name in kind.get_attributes()]
        made = (kind if has_torchvision() else without_videos(kind)).from_args_and_dict(parts, settings, **options)
    if isinstance(made, tuple):
        made = made[0]
    if not hasattr(made, "image_processor") or not hasattr(made, "tokenizer"):
        raise FitPruneError(f"{kind.__name__}, the processor of {source}, does not read images and text: see docs/new_family.md")
    complete(made, config, settings)
    return made


def complete(processor: Any, config: Any, said: Mapping[str, Any]) -> None:
    """Tells a processor of LLaVA's kin how its tower counts, where its files never did: as older ones, saved before it counted itself.

    Args:
        config: The model's.
        said: The settings in the processor's files.
    """
    tower: Any = getattr(config, "vision_config", None)
    side, patch = getattr(tower, "image_size", None), getattr(tower, "patch_size", None)
    if not isinstance(side, int) or not isinstance(patch, int):
        return  # a tower of another kind
    known = {
        "patch_size": patch,
        "vision_feature_select_strategy": getattr(config, "vision_feature_select_strategy", "default"),
        "num_image_tokens": (side // patch) ** 2,
        "num_additional_image_tokens": int(tower.model_type == "clip_vision_model"),  # its class token
    }
    for name, value in known.items():
        if hasattr(processor, name) and said.get(name) is None:
            setattr(processor, name, value)


def _part(kind: Any, name: str, source: Source) -> Any:
    from transformers import AutoFeatureExtractor, AutoTokenizer, AutoVideoProcessor

    if name == "tokenizer":
        if "PixtralProcessor" in kind.__name__:  # whose files may name another class than the one that they are for
            from transformers import PreTrainedTokenizerFast

            return PreTrainedTokenizerFast.from_pretrained(source.place)
        return AutoTokenizer.from_pretrained(source.place)
    if name == "image_processor":
        return load_image_processor(source)
    if name == VIDEO:
        return AutoVideoProcessor.from_pretrained(source.place) if has_torchvision() else WithoutVideos()
    if name == "feature_extractor":
        return AutoFeatureExtractor.from_pretrained(source.place)
    raise FitPruneError(f"{kind.__name__} needs a {name}, which is not known here: see docs/new_family.md")


def image_processor_name(source: Source) -> str:
    """The class that a checkpoint's files name for its image processor, without its implementation; "" if they name none."""
    said = [read_json(path) for path in map(source.get, FILES[:2]) if path is not None]
    said += [one["image_processor"] for one in said if isinstance(one.get("image_processor"), dict)]
    name = next((str(one["image_processor_type"]) for one in said if one.get("image_processor_type")), "")
    return name.removesuffix("Pil").removesuffix("Fast")


def load_image_processor(source: Source) -> Any:
    """The checkpoint's image processor in the implementation that uses Pillow, else the one that there is."""
    import transformers
    from transformers import AutoImageProcessor, BaseImageProcessor

    name = image_processor_name(source)
    for known in (f"{name}Pil", name) if name else ():  # before the implementations were renamed, the plain name was Pillow's
        kind: Any = getattr(transformers, known, None)
        if isinstance(kind, type) and issubclass(kind, BaseImageProcessor) and not _of_torchvision(kind):
            return cast(Any, kind).from_pretrained(source.place)
    try:
        return AutoImageProcessor.from_pretrained(source.place)
    except ImportError:
        raise FitPruneError(f"{name or 'the image processor'} of {source} {TORCHVISION}") from None


def _of_torchvision(kind: type) -> bool:
    """Whether an image processor is the implementation that uses torchvision, as the names of the classes that it is made of tell."""
    return any("Torchvision" in one.__name__ or one.__name__.endswith("ImageProcessorFast") for one in kind.__mro__)


class WithoutVideos:
    """Stands for a video processor where torchvision is not installed; asked to read a video, it says so. Its settings are None."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise FitPruneError(f"a video {TORCHVISION}")

    def __getattr__(self, name: str) -> None:
        if name.startswith("_"):
            raise AttributeError(name)


def without_videos(kind: Any) -> Any:
    """A processor's class that takes a `WithoutVideos` for its video processor."""

    def check(self: Any, name: str, part: Any) -> Any:
        return WithoutVideos if isinstance(part, WithoutVideos) else kind.check_argument_for_proper_class(self, name, part)

    named = {"__module__": kind.__module__, "__repr__": lambda self: kind.__name__}  # its own writes out all parts, and cannot this one
    return type(kind.__name__, (kind,), {"check_argument_for_proper_class": check, **named})
