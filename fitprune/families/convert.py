"""An original checkpoint written once in transformers layout: what `fitprune convert SRC DST` does.

The result is loaded by transformers alone (`LlavaForConditionalGeneration.from_pretrained`; LLaVA-HR after
`import fitprune.llava_hr`) and by `fitprune.load`, which then gives the same tokens and logits as from the source. It
is written next to its place and moved there when it is complete. There is one precision, that of the language model: a CLIP
that comes from a repository of its own is rounded to it, as the original rounds it when it loads.

    fitprune convert liuhaotian/llava-v1.5-7b llava-1.5-7b-hf
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from ..checkpoints.original import is_original
from ..checkpoints.source import Source
from ..errors import FitPruneError
from ..files import current_umask


def convert(path: str | Path, target: str | Path, *, model_base: str | None = None, vision_tower: str | None = None) -> Path:
    """Writes a checkpoint of the original layout, its LoRA adapter merged, as a folder in transformers layout.

    Args:
        path: Folder or hub name.
        target: The folder to make; must not exist, or be empty.
        model_base: As `fitprune.load`.
        vision_tower: As `fitprune.load`.
    Raises:
        FitPruneError: for a source that is not of the original layout or is damaged, and a target that is taken.
    """
    from .loading import original

    target = Path(target)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FitPruneError(f"{target} exists already: name a new folder")
    source = Source(path)
    config = source.json("config.json")
    if not is_original(config):
        raise FitPruneError(f"{path} is no checkpoint of the original layout (no mm_vision_tower): nothing to convert")
    checkpoint = original(source, config, model_base, vision_tower)
    model = checkpoint.model(None, None, "cpu")
    processor = checkpoint.family.processor(model.config, checkpoint.family.image_processor(model.config, None), checkpoint.tokenizer)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.")
    except OSError as error:
        raise FitPruneError(f"cannot write {target}: {error.strerror or error}") from None
    try:
        model.save_pretrained(unfinished)  # type: ignore[operator]
        processor.save_pretrained(unfinished)
        os.chmod(unfinished, 0o777 & ~current_umask())
        if target.exists():
            target.rmdir()
        os.replace(unfinished, target)
    except OSError as error:
        raise FitPruneError(f"cannot write {target}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return target
