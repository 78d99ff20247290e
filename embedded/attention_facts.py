"""Where a model's attention goes, layer by layer: what one should know of a model before pruning is judged on it.

For every layer, means over heads and questions. Of visual tokens: which share they pay to themselves, to other visual
tokens and to the first token of all; how evenly what they pay to visual tokens is spread (entropy over its largest possible
value: 0 one token, 1 all alike); and the largest share that a single visual token gets from those after it ("sink"). Of the
prompt's last token: which share it pays to visual tokens, and how evenly. The model's own forward, one question at a time;
attention is computed beside it, so any decoder of transformers' attention interface can be asked.

    python -m embedded.attention_facts embedded embedded-next embedded-hr --questions 32
    python -m embedded.attention_facts embedded/judge --scenes cluttered
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import fitprune
from fitprune import arguments, entry
from fitprune.decoder.attach import find_decoder
from fitprune.families import VLM
from fitprune.files import write_atomically

from .clutter import SCENES
from .evaluate import Asked, asked
from .scene import Draw, draw
from .tokens import INSTRUCTION

NAME = "embedded-facts"  # of the attention function while a model is asked
FACTS = ("itself", "others", "first", "evenness", "sink", "last to visual", "last's evenness")
Facts = dict[str, list[float]]  # one of `FACTS`: a value per layer
LATE = 4  # a sink is looked for among visual tokens that at least one in so many comes after


def of_layer(attention: Tensor, visual: Tensor) -> dict[str, Tensor]:
    """`FACTS` of one layer, means over heads.

    attention: [H, S, S], rows sum to 1, nothing ahead; visual: bool [S], at least two, not the first or last token.
    """
    rows = attention[:, visual]  # [H, n, S]
    among = rows[:, :, visual]  # [H, n, n]
    count = among.shape[-1]
    itself = among.diagonal(dim1=1, dim2=2)  # [H, n]
    strict = among.tril(-1)
    after = torch.arange(count - 1, -1, -1)  # how many visual tokens come after each
    late = after >= count // LATE
    return {
        "itself": itself.mean(),
        "others": strict.sum(2).mean(),
        "first": rows[:, :, 0].mean(),
        "evenness": (entropy(among)[:, 1:] / torch.arange(2, count + 1).log()).mean(),
        "sink": (strict.sum(1)[:, late] / after[late]).amax(1).mean(),
        "last to visual": attention[:, -1, visual].sum(1).mean(),
        "last's evenness": (entropy(attention[:, -1, visual]) / torch.tensor(float(count)).log()).mean(),
    }


def entropy(shares: Tensor) -> Tensor:
    """In nats, of shares along the last axis, which are scaled to sum to 1."""
    scaled = shares / shares.sum(-1, keepdim=True).clamp(min=1e-30)
    return -(scaled * scaled.clamp(min=1e-30).log()).sum(-1)


def _attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any) -> Any:
    """transformers' sdpa attention; the map that it stands for is noted in `heard` of the module's config."""
    scaling = options.get("scaling")
    keys = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    logits = (query @ keys.mT).float() * (query.shape[-1] ** -0.5 if scaling is None else scaling)  # [1, H, S, S]
    ahead = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).triu(1)
    heard: list[Tensor] = module.config.heard  # type: ignore[union-attr, assignment]
    heard.append(logits.masked_fill(ahead, -torch.inf).softmax(-1)[0].cpu())
    return sdpa_attention_forward(module, query, key, value, mask, **options)


ALL_ATTENTION_FUNCTIONS.register(NAME, _attend)
ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])


@contextmanager
def listening(model: nn.Module) -> Iterator[list[Tensor]]:
    """While inside, each forward of an unpadded prompt puts one map [H, S, S] per layer into the list."""
    config: Any = find_decoder(model).config
    usual = config._attn_implementation
    config._attn_implementation, config.heard = NAME, []
    try:
        yield config.heard
    finally:
        config._attn_implementation = usual
        del config.heard


@torch.inference_mode()
def facts(vlm: VLM, questions: Sequence[Asked]) -> Facts:
    """Means over questions, each about one picture."""
    sums: list[dict[str, float]] = []
    with listening(vlm.model) as heard:
        for picture, question in questions:
            inputs = vlm.encode([(vlm.prompt(f"{question.text}\n{INSTRUCTION}"), [picture])])
            vlm.model(**{name: value.to(vlm.device) for name, value in inputs.items()}, use_cache=False)
            visual = (inputs["input_ids"][0] == vlm.image_token).cpu()
            sums = sums or [dict.fromkeys(FACTS, 0.0) for _ in heard]
            for layer, attention in zip(sums, heard, strict=True):
                for name, value in of_layer(attention, visual).items():
                    layer[name] += value.item() / len(questions)
            heard.clear()
    return {name: [layer[name] for layer in sums] for name in FACTS}


def table(found: dict[str, Facts], layers: bool = True) -> str:
    """As markdown: a row per layer of each model, or one per model with means over layers; shares in percent."""
    lines = [f"| | {'layer | ' * layers}{' | '.join(FACTS)} |", "|---" * (len(FACTS) + 1 + layers) + "|"]
    for model, values in found.items():
        depth = len(values[FACTS[0]])
        for layer in range(depth) if layers else (None,):
            shown = [sum(values[name]) / depth if layer is None else values[name][layer] for name in FACTS]
            lines.append(f"| {model} | {'' if layer is None else f'{layer} | '}{' | '.join(f'{100 * one:.1f}' for one in shown)} |")
    return "\n".join(lines)


def in_turn(pictures: int, draw: Draw = draw) -> list[Asked]:
    """One question about each of the first held-out pictures, the families in turn."""
    by_picture: dict[int, list[Asked]] = {}
    for one in asked("held-out", pictures, draw=draw):
        by_picture.setdefault(id(one[0]), []).append(one)
    return [found[at % len(found)] for at, found in enumerate(by_picture.values())]


def run(args: argparse.Namespace) -> int:
    """Prints the tables; returns the exit code."""
    questions = in_turn(args.questions, SCENES[args.scenes])
    found = {name: facts(fitprune.load(name, device=args.device), questions) for name in args.models}
    print(table(found, layers=False), table(found), sep="\n\n")
    if args.output:
        write_atomically(args.output, json.dumps(found, indent=1).encode())
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; 0, or 2 with one line on stderr for bad input."""
    parser = arguments.Parser(prog="embedded.attention_facts", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL", help="names or folders, as fitprune.load takes them")
    parser.add_argument("--scenes", choices=list(SCENES), default="plain", help="cluttered ones are what the judge was trained on")
    parser.add_argument("--questions", type=arguments.positive, default=32, help="held-out pictures, one question each")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, default=None, help="also write the facts as JSON")
    return entry.guarded(run, parser, argv)


if __name__ == "__main__":
    raise SystemExit(main())
