"""The two classes that lmms-eval runs: requests → texts or likelihoods, in the same order.

Requests with equal generation settings are answered in batches; images are opened batch by batch. Pruning is attached for the
duration of a call. With several processes lmms-eval gives each its share of the documents.

lmms-eval's scoring picks the *smallest* likelihood, as its LLaVA adapters return the mean negative log-likelihood per token of the
answer, end mark included; these classes do the same. The image is pruned by what the question attends to; the answer is fed after it,
so that all choices see the same image. Likelihoods are returned as lmms-eval's `GenerationResult`, since its evaluator (0.7.3)
turns a plain pair, which its documentation asks for, into text.

    pytest tests/lmms/test_lmms_eval.py
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from lmms_eval.api.instance import GenerationResult
from lmms_eval.api.model import lmms
from torch import Tensor
from tqdm import tqdm

from ..distributed.launch import own_rank, started
from ..errors import FitPruneError
from ..families import VLM
from ..prune import prune
from ..studies.against_dense import teacher_forced_logits
from .arguments import Arguments
from .conversation import Message, conversation, user_message
from .settings import KNOWN, Settings, read_settings

log = logging.getLogger(__name__)


class _FitPrune(lmms):
    """What both types share; each reads requests in its own way (`_messages`)."""

    settings_at: int  # where a request has its generation settings

    def __init__(self, **given: Any) -> None:
        """Loads the checkpoint and chooses the recipe; given: see `Arguments`, whose errors are raised."""
        super().__init__()
        self.arguments = Arguments.read(given)
        self._rank, self._world_size = own_rank(), started()
        self.batch_size = int(self.arguments.batch_size)
        self.vlm: VLM | None = self.arguments.load()
        self.device = self.vlm.device
        choice = self.arguments.resolve(self.vlm)
        self.recipe = choice.recipe
        self._reported: set[str] = set()
        if self._rank == 0:
            print(f"fitprune: {choice.source}")

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """An answer to each request, up to one of the task's `until` texts; a FitPruneError names the task and the document."""
        answers = [""] * len(requests)
        alike: dict[Settings, list[int]] = {}
        for index, request in enumerate(requests):
            alike.setdefault(self._settings(request), []).append(index)
        with self._pruned() as vlm, self._bar(len(requests)) as bar:
            for settings, indices in alike.items():
                for batch in self._batches(indices):
                    prompts = [self._prompt(vlm, requests[index], self._messages(requests[index])) for index in batch]
                    texts = vlm.generate(vlm.encode(prompts), **settings.generation)
                    for index, text in zip(batch, texts, strict=True):
                        answers[index] = settings.cut(text)
                    bar.update(len(batch))
        return answers

    def clean(self) -> None:
        """Gives the model's memory back, when a judge is to be loaded after it."""
        self.vlm = None
        super().clean()

    def _messages(self, request: Any) -> Sequence[Message]:
        raise NotImplementedError

    def _settings(self, request: Any) -> Settings:
        given = request.args[self.settings_at]
        for name in sorted(set(given) - set(KNOWN) - self._reported):
            self._reported.add(name)
            log.warning("generation setting %s: %s is not known to fitprune and does nothing", name, given[name])
        return read_settings(given)

    def _document(self, number: Any, task: str, split: str) -> Any:
        return self.task_dict[task][split][number]

    def _prompt(self, vlm: VLM, request: Any, messages: Sequence[Message], answer: str | None = None) -> Any:
        try:
            turns, images = conversation(messages, answer)
            return vlm.write(turns), images
        except FitPruneError as error:
            raise FitPruneError(f"{request.task_name}, document {request.doc_id}: {error}") from None

    @contextmanager
    def _pruned(self) -> Iterator[VLM]:
        if self.vlm is None:
            raise FitPruneError("the model's memory was given back (clean): make another")
        recipe, score = self.recipe, self.arguments.score
        attached: AbstractContextManager[Any] = prune(self.vlm.model, recipe, score=score) if recipe else nullcontext()
        with attached:
            yield self.vlm

    def _batches(self, indices: Sequence[int]) -> Iterator[Sequence[int]]:
        return (indices[at : at + self.batch_size] for at in range(0, len(indices), self.batch_size))

    def _bar(self, total: int) -> Any:
        return tqdm(total=total, desc="fitprune", unit="q", disable=self._rank != 0)


class FitPruneChat(_FitPrune):
    """Requests are (context, document → messages, settings, document, task, split); the context is not used."""

    is_simple = False
    settings_at = -4  # some versions of lmms-eval leave out the context

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[list[str]]:
        """For each request the answers of all rounds; the task writes each round's messages from the answers so far."""
        answers = []
        with self._pruned() as vlm, self._bar(len(requests)) as bar:
            for request in requests:
                answers.append(self._rounds(vlm, request))
                bar.update()
        return answers

    def loglikelihood(self, requests: Sequence[Any]) -> list[Any]:
        """lmms-eval has multiple choice by likelihood for simple models only."""
        raise FitPruneError("multiple choice by likelihood needs a simple model of lmms-eval: add --force_simple")

    def _rounds(self, vlm: VLM, request: Any) -> list[str]:
        """The answers of all rounds; from the second on the task says (messages, ended, …, what it wants to be told)."""
        settings, (write, document) = self._settings(request), self._asked(request)
        answers: list[str] = []
        messages, ended, told = write(document), False, None
        while not ended:
            prompt = self._prompt(vlm, request, messages)
            answers.append(settings.cut(vlm.generate(vlm.encode([prompt]), **settings.generation)[0]))
            written = write(document, round_idx=len(answers), previous_output=list(answers), previous_round_info=told)
            messages, ended, _, told = written if isinstance(written, tuple) else (None, True, None, None)
        return answers

    def _messages(self, request: Any) -> Sequence[Message]:
        write, document = self._asked(request)
        found: Sequence[Message] = write(document)
        return found

    def _asked(self, request: Any) -> tuple[Any, Any]:
        """The task's function that writes messages, and the document."""
        write, _, *where = request.args[-5:]
        return write, self._document(*where)


class FitPruneSimple(_FitPrune):
    """Requests are (text, settings or answer, document → images, document, task, split)."""

    is_simple = True
    settings_at = 1

    def loglikelihood(self, requests: Sequence[Any]) -> list[Any]:
        """For each request the mean negative log-likelihood per token of its answer, and whether greedy decoding gives it."""
        results: list[tuple[float, bool]] = []
        with self._pruned() as vlm, self._bar(len(requests)) as bar:
            for batch in self._batches(range(len(requests))):
                asked, answers = zip(*(self._choice(vlm, requests[index]) for index in batch), strict=True)
                longest = max(map(len, answers))
                padded = torch.tensor([[*answer, *[0] * (longest - len(answer))] for answer in answers])  # [B, T]
                logits = teacher_forced_logits(vlm.model, vlm.encode(list(asked)), padded)  # [B, T, V]
                results += [_likelihood(row[: len(a)], torch.tensor(a)) for row, a in zip(logits, answers, strict=True)]
                bar.update(len(batch))
        return [GenerationResult(text=pair) for pair in results]

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[list[str]]:
        """lmms-eval has rounds for chat models only."""
        raise FitPruneError("several rounds need a chat model of lmms-eval: leave out --force_simple")

    def _messages(self, request: Any) -> Sequence[Message]:
        text, _, *rest = request.args
        images = rest[0](self._document(*rest[1:])) if rest else None
        return [user_message(text, images or ())]

    def _choice(self, vlm: VLM, request: Any) -> tuple[Any, list[int]]:
        """The prompt with its images, and the token ids of the answer as the template writes it after it."""
        answer = request.args[1]
        if callable(answer):
            answer = answer(self._document(*request.args[3:]))
        messages = self._messages(request)
        prompt, images = self._prompt(vlm, request, messages)
        whole, _ = self._prompt(vlm, request, messages, str(answer).strip())
        before, ids = vlm.token_ids(prompt, images), vlm.token_ids(whole, images)
        if ids[: len(before)] != before:
            raise FitPruneError(f"this tokenizer joins the question and the answer {answer!r}: generate instead")
        return (prompt, images), ids[len(before) :]


def _likelihood(logits: Tensor, answer: Tensor) -> tuple[float, bool]:
    """Mean negative log-likelihood of an answer [T] under logits [T, V], and whether each token is the likeliest."""
    nats = -logits.log_softmax(-1).gather(-1, answer[:, None]).mean()
    return float(nats), bool((logits.argmax(-1) == answer).all())
