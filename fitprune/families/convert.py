"""An original checkpoint written once in transformers layout: what `fitprune convert SRC DST` does.

The result is loaded by transformers alone (`LlavaForConditionalGeneration.from_pretrained`; LLaVA-HR after
`import fitprune.llava_hr`) and by `fitprune.load`, which then gives the same tokens and logits as from the source. It
is written next to its place and moved there when it is complete. There is one precision, that of the language model: a CLIP
that comes from a repository of its own is rounded to it, as the original rounds it when it loads. The
conversation template goes with it as a chat template, and what ends an answer in its generation config, so that messages given to
transformers alone (a pipeline, a server) are asked in the trained form.

    fitprune convert liuhaotian/llava-v1.5-7b llava-1.5-7b-hf
"""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import save_torch_state_dict

from ..checkpoints.names import in_file
from ..checkpoints.original import is_original, read_original
from ..checkpoints.source import Source
from ..errors import FitPruneError
from .chat_template import chat_template
from .conversation import answer_ends, stop_string, template_for
from .loading import original_family


def convert(path: str | Path, target: str | Path, *, model_base: str | None = None, vision_tower: str | None = None) -> Path:
    """Writes a checkpoint of the original layout, its LoRA adapter merged, as a folder in transformers layout.

    Args:
        path: As `fitprune.load`, like model_base and vision_tower.
        target: The folder to make; must not exist, or be empty.
    Raises:
        FitPruneError: for a source that is not of the original layout or is damaged, and a target that is taken.
    """
    target = Path(target)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FitPruneError(f"{target} exists already: name a new folder")
    source = Source(path)
    config = source.json("config.json")
    if not is_original(config):
        raise FitPruneError(f"{path} is no checkpoint of the original layout (no mm_vision_tower): nothing to convert")
    family = original_family(config, source)
    checkpoint = read_original(source, config, family, model_base, vision_tower)
    model: Any = checkpoint.model(None, None, "cpu")
    processor = family.processor(model.config, family.image_processor(model.config, None), checkpoint.tokenizer)
    checkpoint.tokenizer.padding_side = "left"  # as any batched generation wants it
    template = template_for(model.config.get_text_config().model_type, checkpoint.tokenizer, str(path))
    processor.chat_template = chat_template(template)
    model.generation_config.eos_token_id = (
        answer_ends(stop_string(template), checkpoint.tokenizer, model.generation_config.eos_token_id) or None
    )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as unfinished:
            whole = Path(unfinished) / "whole"
            whole.mkdir()
            save(model, whole)
            processor.save_pretrained(whole)
            if target.exists():
                target.rmdir()
            os.replace(whole, target)
    except OSError as error:
        raise FitPruneError(f"cannot write {target}: {error.strerror or error}") from None
    return target


def save(model: Any, folder: Path) -> None:
    """As `save_pretrained`, but under the hub's names, which transformers 5.0 and vLLM read, whatever the installed version writes."""
    known = type(model).__module__.partition(".")[0] == "transformers"  # a class of ours is read as it is written
    weights = {in_file(name) if known else name: value for name, value in model.state_dict().items()}
    save_torch_state_dict(weights, folder)
    model.config.architectures, model.config.dtype = [type(model).__name__], model.dtype
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
