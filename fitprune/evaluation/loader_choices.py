"""`llava.eval.model_vqa_science` and `model_vqa_mmbench`: the loader for ScienceQA's list and MMBench's table of questions.

All flags of the loader (loader.py) and theirs on top, with their own limit of new tokens. `--single-pred-prompt` asks for
the letter alone, as every script does. `--num-chunks` cuts what is asked, so with `--all-rounds` a question's rounds may
lie in two chunks; joined in order, the chunks are the whole file all the same.

    python -m fitprune.evaluation.loader_choices science --single-pred-prompt --answers-file /tmp/answers.jsonl
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial

from .. import entry
from ..embedded import MODEL_NAME, embedded
from . import loader
from .benchmark import Benchmark
from .benchmarks import mmbench, mmbench_cn, sqa


def science(argv: Sequence[str] | None = None, model: str = MODEL_NAME, benchmark: Benchmark = sqa.BENCHMARK) -> int:
    """`model_vqa_science`, with a family's default model and rule; exit code as `loader.main`."""
    parser = _parser("model_vqa_science", model, benchmark)
    parser.add_argument("--answer-prompter", action="store_true", help="accepted; changes nothing, as in LLaVA")
    data = embedded().data / sqa.BENCHMARK.folder
    parser.set_defaults(question_file=str(data / sqa.BENCHMARK.questions), image_folder=str(data / sqa.BENCHMARK.images))

    def run(args: argparse.Namespace) -> int:
        return loader.run(args, partial(sqa.read, single_pred_prompt=args.single_pred_prompt))

    return entry.guarded(run, parser, argv, together=entry.always)


def for_mmbench(argv: Sequence[str] | None = None, model: str = MODEL_NAME) -> int:
    """`model_vqa_mmbench`, with a family's default model; exit code as `loader.main`."""
    parser = _parser("model_vqa_mmbench", model, mmbench.BENCHMARK)
    parser.add_argument("--all-rounds", action="store_true", help="ask as often as there are choices")
    parser.add_argument("--lang", default="en", help="language of --single-pred-prompt: cn, else English")
    parser.set_defaults(question_file=None)

    def run(args: argparse.Namespace) -> int:
        if args.question_file is None:
            benchmark = (mmbench_cn if args.lang == "cn" else mmbench).BENCHMARK
            args.question_file = str(embedded().data / benchmark.folder / benchmark.questions)
        asked = {"single_pred_prompt": args.single_pred_prompt, "lang": args.lang, "all_rounds": args.all_rounds}
        return loader.run(args, partial(mmbench.read, **asked))

    return entry.guarded(run, parser, argv, together=entry.always)


def _parser(prog: str, model: str, benchmark: Benchmark) -> argparse.ArgumentParser:
    parser = loader.parser(model)
    parser.prog = prog
    parser.add_argument("--single-pred-prompt", action="store_true", help="ask for the letter alone")
    parser.set_defaults(max_new_tokens=benchmark.max_new_tokens)
    return parser


if __name__ == "__main__":
    kinds = {"science": science, "mmbench": for_mmbench}
    if sys.argv[1:2] and sys.argv[1] in kinds:
        raise SystemExit(kinds[sys.argv[1]](sys.argv[2:]))
    raise SystemExit(f"say what to ask first: {' or '.join(kinds)}")
