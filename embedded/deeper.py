"""The judge: a LLaVA-1.5 of 12 layers and 256 visual tokens on cluttered pictures, harder and fairer to prune than the others.

The other models flatter some methods: their backgrounds are near-identical patches, and attention among visual tokens was
charged in training. Here no spot is plain (clutter.py) and nothing is charged. It starts as the known model (warm.py), with
decoder and tower layers put in between as identities (what they add to the residual stream starts at zero) and positions of
the tower carried over from 12 × 12 to 16 × 16; the tower then learns to see in clutter before questions are asked.

What the charge has left behind is taken back: in the known model a visual token pays 98% of its attention to itself, and a
softmax so full hardly learns. Visual tokens live in directions of their own, so queries can be changed to be nothing for
them (they then look at everything before them alike) and what they were for text; answers do not change by it (`loosened`).

    python -m embedded.train /tmp/run --family judge
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlavaConfig, LlavaForConditionalGeneration

from .batches import Batch, answering, pixels
from .clutter import SIDE, picture
from .network import PATCH, Embedded, question_heads, start_layers
from .scene import SIDE as PLAIN_SIDE
from .scene import Scene
from .targets import targets
from .tokens import IMAGE_ID, prefix
from .warm import Warm, known_config

TEXT_LAYERS, VISION_LAYERS = (2, 5, 8), (1, 3)  # after which of the known model's layers a new one stands
SAMPLES = 12  # plain training pictures on which text and visual tokens are told apart
RIDGE = 1e-3  # against the mean square of the inputs


def settings(size: str = "small") -> LlavaConfig:
    """The known model's configuration with more layers and a larger picture; `size` is the known model's, whatever is given."""
    known = known_config()
    known.text_config.num_hidden_layers += len(TEXT_LAYERS)
    known.text_config.layer_types = None
    known.vision_config.num_hidden_layers += len(VISION_LAYERS)
    known.vision_config.image_size = SIDE
    known.image_seq_length = (SIDE // PATCH) ** 2
    return known


def look(scenes: list[Scene]) -> Batch:
    """Cluttered pictures, and what their patches show: pixels [B, 3, SIDE, SIDE], targets [B, heads, n]."""
    size, patches = (SIDE, SIDE), PLAIN_SIDE // PATCH
    return {
        "pixels": pixels(np.stack([np.asarray(picture(scene)) for scene in scenes])),
        "targets": torch.from_numpy(np.stack([targets(scene, patches, size) for scene in scenes])),
    }


class Judge(Warm):
    """The deeper LLaVA-1.5 from the known model."""

    known_pace = 0.5
    charged = False

    def build(self) -> Any:
        made = settings()
        self.heads = question_heads(made.vision_config.hidden_size, made.text_config.hidden_size)
        llava = LlavaForConditionalGeneration._from_config(made, attn_implementation="sdpa", dtype=torch.float32)
        start_layers(llava)
        return llava

    def pace(self, name: str) -> float:
        return 1.0 if name.startswith("heads") or name in self.fresh else self.known_pace

    @torch.no_grad()
    def take(self, known: Any) -> None:
        ours = self.llava.model
        ours.multi_modal_projector.load_state_dict(known.model.multi_modal_projector.state_dict())
        self.llava.lm_head.load_state_dict(known.lm_head.state_dict())
        decoder = known.model.language_model
        ours.language_model.embed_tokens.load_state_dict(decoder.embed_tokens.state_dict())
        ours.language_model.norm.load_state_dict(decoder.norm.state_dict())
        new = _take_layers(ours.language_model.layers, decoder.layers, TEXT_LAYERS)
        mine, theirs = (getattr(tower, "vision_model", tower) for tower in (ours.vision_tower, known.model.vision_tower))
        for name in ("pre_layrnorm", "post_layernorm"):
            getattr(mine, name).load_state_dict(getattr(theirs, name).state_dict())
        mine.embeddings.patch_embedding.load_state_dict(theirs.embeddings.patch_embedding.state_dict())
        mine.embeddings.class_embedding.copy_(theirs.embeddings.class_embedding)
        mine.embeddings.position_embedding.weight.copy_(larger(theirs.embeddings.position_embedding.weight, SIDE // PATCH))
        for layer in new:
            for proj in (layer.self_attn.q_proj, layer.self_attn.k_proj):
                nn.init.normal_(proj.weight, std=proj.in_features**-0.5)
        kept = [layer for layer in ours.language_model.layers if layer not in new]
        for layer, query in zip(kept, loosened(known), strict=True):
            layer.self_attn.q_proj.weight.copy_(query)
        new += _take_layers(mine.encoder.layers, theirs.encoder.layers, VISION_LAYERS)
        fresh = {id(parameter) for layer in new for parameter in layer.parameters()}
        self.fresh = {name for name, parameter in self.named_parameters() if id(parameter) in fresh}

    see_loss = Embedded.see_loss


def _take_layers(ours: nn.ModuleList, theirs: nn.ModuleList, after: tuple[int, ...]) -> list[Any]:
    """Copies layers and makes the new ones, each after one of `after`, add nothing; returns the new ones."""
    new: list[Any] = []
    place = iter(ours)
    for at, layer in enumerate(theirs):
        next(place).load_state_dict(layer.state_dict())
        if at in after:
            added = next(place)
            for name, module in added.named_modules():
                if name.rpartition(".")[2] in ("o_proj", "down_proj", "out_proj", "fc2"):
                    for parameter in module.parameters():
                        nn.init.zeros_(parameter)
            new.append(added)
    return new


def loosened(known: Any) -> list[Tensor]:
    """Per layer of the known model, a query matrix [H · D, C] that is nothing for visual tokens, by least squares over samples."""
    layers = known.model.language_model.layers
    heard: list[list[Tensor]] = [[] for _ in layers]
    handles = [
        layer.self_attn.q_proj.register_forward_hook(lambda module, inputs, output, at=at: heard[at].append(inputs[0][0]))
        for at, layer in enumerate(layers)
    ]
    batch, count = answering(0, SAMPLES), known.config.image_seq_length
    start = torch.tensor([*prefix(), *[IMAGE_ID] * count])
    for row in range(SAMPLES):
        ids = torch.cat([start, batch["ids"][row][batch["slot"][row] > 0]])
        known(input_ids=ids[None], pixel_values=batch["pixels"][row : row + 1])
    for handle in handles:
        handle.remove()
    visual = slice(len(prefix()), len(start))
    found = []
    for layer, inputs in zip(layers, heard, strict=True):
        seen = torch.cat([one[visual] for one in inputs])  # [tokens, C]
        said = torch.cat([torch.cat([one[: visual.start], one[visual.stop :]]) for one in inputs])
        of_seen, of_said = (part.T @ part / len(part) for part in (seen, said))
        ridge = RIDGE * torch.eye(len(of_seen))
        kept = torch.linalg.solve(of_seen + of_said + ridge, of_said + ridge)  # [C, C]: what is text passes, what is visual does not
        found.append(layer.self_attn.q_proj.weight @ kept.T)
    return found


def larger(known: Tensor, grid: int) -> Tensor:
    """Position embeddings [1 + n², C] of the class token and a square of patches, for a square of `grid` × `grid`."""
    old = round((len(known) - 1) ** 0.5)
    square = known[1:].T.unflatten(1, (old, old))[None]  # [1, C, n, n]
    square = F.interpolate(square, (grid, grid), mode="bicubic", align_corners=True)
    return torch.cat([known[:1], square[0].flatten(1).T])
