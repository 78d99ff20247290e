"""A LLaVA-1.5 with random weights for serving: half of the layers of `bench`'s small shape, the embedded model's tokenizer and template.

The decoder is what is measured: its vision tower is the embedded model's size, on images of 336 pixels.

    python -c "from pathlib import Path; from fitprune.bench.serving_shape import random_llava; random_llava(Path('/tmp/random'))"
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from ..embedded import model_path
from ..families.convert import save
from .shapes import SHAPES

SHAPE = SHAPES["small"].altered(layers=16)
SIDE, ANSWER = 336, 16  # pixels of an image, whose patches are the visual tokens; tokens of an answer
STEPS = {1: 260, 3: 120, 7: 80}  # layer: visual tokens that it deletes
DELETIONS = [STEPS.get(layer, 0) for layer in range(SHAPE.cost.layers)]
COPIED = ("chat_template.jinja", "tokenizer.json", "tokenizer_config.json", "generation_config.json")


def random_llava(folder: Path) -> Path:
    """Writes it, unless the folder has one; the folder."""
    import torch
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    if (folder / "model.safetensors").exists():
        return folder
    own = Path(model_path("embedded"))
    config = json.loads((own / "config.json").read_text())
    cost, config["image_seq_length"] = SHAPE.cost, SHAPE.visual
    config["vision_config"]["image_size"] = SIDE
    config["text_config"] |= {
        "hidden_size": cost.hidden, "intermediate_size": cost.intermediate, "num_hidden_layers": cost.layers,
        "num_attention_heads": cost.heads, "num_key_value_heads": cost.kv_heads, "head_dim": cost.head_dim,
    }  # fmt: skip
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(LlavaConfig.from_dict(config)).to(torch.float32)
    folder.mkdir(parents=True, exist_ok=True)
    for name in COPIED:
        shutil.copy(own / name, folder / name)
    processor = json.loads((own / "processor_config.json").read_text())
    processor["image_processor"] |= {"crop_size": {"height": SIDE, "width": SIDE}, "size": {"shortest_edge": SIDE}}
    (folder / "processor_config.json").write_text(json.dumps(processor))
    save(model, folder)
    return folder
