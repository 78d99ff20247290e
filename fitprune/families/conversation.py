"""Conversation templates: the exact text around a question that each LLaVA checkpoint was trained with.

A checkpoint answers worse, silently, when one word or space of its frame differs ("curious user" and "curious human"
are two templates). So a template is plain data and one function writes it. The prompts are those that the Conversation
class of LLaVA's llava/conversation.py prints.

Four styles: "two" (separators alternate), "single" (one separator), "chatml" (MPT, ChatML and Llama-3: role headers
and one end mark), "llama_2" ([INST] … [/INST]). `plain` is pretraining's captioning text and has no dialogue. Left out:
templates that no LLaVA-1.5 or later evaluation uses (v0 with its example turn, llama_2 with Meta's system text, the
mmtag ones). `<image>` is the caller's: it stands in the user text, usually first, followed by a newline. The BOS token
is the tokenizer's, except in llava_llama_3, whose original text comes from Llama-3's chat template and begins with it.

    python -c "from fitprune.families.conversation import *; print(build_prompt('mpt', [('<image>\\nWhy?', None)]))"
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..errors import FitPruneError
from ..files import model_names


@dataclass(frozen=True)
class Template:
    """One frame around a conversation.

    `sep` ends what the user says (in "llama_2" it precedes it, from the second time on); `sep2`, or `sep` where there
    is none, ends an answer. In "chatml" it ends the system text as well, and `gap` stands after each of these ends.
    `begin` stands before everything.
    """

    style: Literal["two", "single", "chatml", "llama_2", "plain"]
    system: str
    user: str
    assistant: str
    sep: str
    sep2: str = ""
    gap: str = ""
    begin: str = ""


_CURIOUS = (
    "A chat between a curious {person} and an artificial intelligence assistant. The assistant gives helpful, "
    "detailed, and polite answers to the {person}'s questions."
)
_HELPFUL = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)
_CHATML = ("<|im_start|>user\n", "<|im_start|>assistant\n", "<|im_end|>")

TEMPLATES: dict[str, Template] = {
    "vicuna_v1": Template("two", _CURIOUS.format(person="user"), "USER", "ASSISTANT", " ", "</s>"),
    "llava_v1": Template("two", _CURIOUS.format(person="human"), "USER", "ASSISTANT", " ", "</s>"),
    "llava_v0": Template("single", _CURIOUS.format(person="human"), "Human", "Assistant", "###"),
    "mistral_instruct": Template("llama_2", "", "", "", "", "</s>"),
    "chatml_direct": Template("chatml", "Answer the questions.", *_CHATML),
    "mpt": Template(
        "chatml", "A conversation between a user and an LLM-based AI assistant. The assistant gives helpful and honest answers.", *_CHATML
    ),
    "qwen_1_5": Template("chatml", "You are a helpful assistant.", *_CHATML, gap="\n"),
    "llava_llama_2": Template("llama_2", _HELPFUL, "", "", "<s>", "</s>"),
    "llava_llama_3": Template(
        "chatml",
        _HELPFUL,
        "<|start_header_id|>user<|end_header_id|>\n\n",
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "<|eot_id|>",
        begin="<|begin_of_text|>",
    ),
    "plain": Template("plain", "", "", "", "\n"),
}
ALIASES = {"v1": "vicuna_v1", "mistral_direct": "chatml_direct", "v0_plain": "plain"}


def names() -> list[str]:
    """Every accepted template name, other spellings included, sorted."""
    return sorted([*TEMPLATES, *ALIASES])


def template_for(text_model_type: str, tokenizer: Any, name: str) -> str:
    """The template that a checkpoint was trained with, from what is in it rather than from how its folder is called.

    Only Llama-2-chat needs the name: its vocabulary is Vicuna's.

    Args:
        text_model_type: `model_type` of the language model's config.
        tokenizer: Anything with `get_vocab()`.
        name: Hub name or folder, of which `files.model_names` counts.
    """
    vocabulary = tokenizer.get_vocab()
    if "<|start_header_id|>" in vocabulary:
        return "llava_llama_3"
    if "<|im_start|>" in vocabulary:
        return "qwen_1_5" if text_model_type.startswith("qwen2") else "chatml_direct"
    if text_model_type == "mistral":
        return "mistral_instruct"
    return "llava_llama_2" if any("llama-2" in one.lower() for one in model_names(name)) else "vicuna_v1"


def stop_string(template: str) -> str:
    """The text that ends an answer in this template: LLaVA strips it from the end of a decoded answer.

    As in the original it is the second separator in the "two" style and the first one elsewhere; "" (mistral_instruct)
    means that there is nothing to strip. The end-of-sequence token ends an answer in any case.

    Raises:
        FitPruneError: for an unknown template.
    """
    frame = _template(template)
    return frame.sep2 if frame.style == "two" else frame.sep


def answer_ends(stop_text: str, tokenizer: Any, known: int | Sequence[int] | None) -> list[int]:
    """Tokens that end an answer: those known (a generation config's), and the template's stop string where it is one token."""
    ends = [] if known is None else [known] if isinstance(known, int) else list(known)
    stop = tokenizer.get_vocab().get(stop_text.strip())
    return ends if stop is None or stop in ends else [*ends, stop]


@dataclass(frozen=True)
class Pieces:
    """A template of dialogue as the texts that stand between what is said: what `build_prompt` and the Jinja form are written from.

    begin, system (its text), before_system and after_system (left out with it), then for each turn: before what the user says (first:
    the first time), after it, and, around an answer, before_answer and after_answer. cue is what the model goes on from.
    """

    begin: str
    system: str
    before_system: str
    after_system: str
    first: str
    before: str
    after: str
    before_answer: str
    after_answer: str
    cue: str


def pieces(template: str) -> Pieces:
    """The texts of a template.

    Raises:
        FitPruneError: for an unknown template, and for `plain`, which has no dialogue.
    """
    frame = _template(template)
    if frame.style == "plain":
        raise FitPruneError(f"template {template!r} is for a single caption, not for dialogue: use another template")
    if frame.style == "llama_2":  # users speak inside [INST]; the system text stands inside the first of them
        around = ("<<SYS>>\n", "\n<</SYS>>\n\n")
        return Pieces(frame.begin + "[INST] ", frame.system, *around, "", frame.sep + "[INST] ", " [/INST]", " ", f" {frame.sep2}", "")
    colon = "" if frame.style == "chatml" else ": "
    header = frame.user.replace("user", "system") if frame.style == "chatml" else ""
    ends, said = (frame.sep2 or frame.sep) + frame.gap, frame.user + colon
    return Pieces(
        frame.begin, frame.system, header, frame.sep + frame.gap, said, said, frame.sep + frame.gap,
        frame.assistant + colon, ends, frame.assistant + colon.rstrip(),
    )  # fmt: skip


def build_prompt(template: str, turns: Sequence[tuple[str, str | None]], system: str | None = None) -> str:
    """The text of a conversation, ending where the model is to go on.

    Args:
        template: One of `names()`.
        turns: (user text, assistant text) pairs. None as assistant text, allowed in the last pair only, is the turn to
            be answered; "" is an answer that is empty.
        system: Instead of the template's system text, which the checkpoint was trained with; "" leaves it out.
    Raises:
        FitPruneError: for an unknown template, no turn, or an unanswered turn before the last one.
    Source: LLaVA, llava/conversation.py (Conversation.get_prompt); qwen_1_5 and llava_llama_3: the same file of
        LLaVA-NeXT. Its first Llama-3 roles carried the header mark twice; here it stands once, as in Llama-3 itself.
    """
    if not turns:
        raise FitPruneError("a prompt needs at least one turn: give [(text, None)]")
    if any(answer is None for _, answer in turns[:-1]):
        raise FitPruneError("only the last turn of a conversation can be without an answer: give the earlier answers")
    frame = _template(template)
    if frame.style == "plain" and len(turns) == 1 and turns[0][1] is None:
        return turns[0][0] + frame.sep
    of = pieces(template)
    said = of.system if system is None else system
    text = of.begin + (of.before_system + said + of.after_system if said else "")
    for number, (asked, answer) in enumerate(turns):
        text += (of.before if number else of.first) + asked + of.after
        text += of.cue if answer is None else of.before_answer + answer + of.after_answer
    return text


def _template(name: str) -> Template:
    frame = TEMPLATES.get(ALIASES.get(name, name))
    if frame is None:
        raise FitPruneError(f"unknown conversation template {name!r}: use one of {', '.join(names())}")
    return frame
