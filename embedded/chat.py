"""The tokenizer of the embedded Qwen3-VL: the words of tokens.py under Qwen's special tokens, in Qwen's chat form.

A prompt is `<|im_start|>user` … `<|im_end|>`, `<|im_start|>assistant`, with `<|vision_start|>`, the picture's
`<|image_pad|>` and `<|vision_end|>` before the question; an answer ends with `<|im_end|>`. Line feeds are no token. LLaVA's
instruction sentence stays one token; Vicuna's sentence has no place here. Videos have a mark, but were not trained. Left out:
tools, thinking.

    python -c "from embedded.chat import *; print(tokenizer().encode(prompt('What number is written?')).tokens)"
"""

from __future__ import annotations

from functools import cache

from tokenizers import AddedToken, Tokenizer

from . import tokens
from .tokens import INSTRUCTION, Prompts

SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<unk>", "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>",
)  # fmt: skip
PAD, START, END, UNKNOWN, IMAGE_ID, VIDEO_ID, VISION_START, VISION_END = range(len(SPECIAL))
ROLES = ("user", "assistant")
KNOWN_AS = dict(zip(SPECIAL, tokens.SPECIAL, strict=False)) | dict(zip(ROLES, tokens.sentences()[1:3], strict=True))
"""What stood in these places in the known model's prompts: weights begin as those of that token."""
TEMPLATE = """{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\\n' }}
{%- if message['content'] is string -%}
{{ message['content'] }}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' or 'image' in part -%}
{{ '<|vision_start|><|image_pad|><|vision_end|>' }}
{%- elif part['type'] == 'video' or 'video' in part -%}
{{ '<|vision_start|><|video_pad|><|vision_end|>' }}
{%- elif 'text' in part -%}
{{ part['text'] }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{ '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|im_start|>assistant\\n' }}
{%- endif -%}
"""


@cache
def tokenizer() -> Tokenizer:
    """The tokenizer; it adds nothing to what it is given."""
    made = tokens.word_piece(SPECIAL, ROLES)
    made.add_tokens([AddedToken(INSTRUCTION, lstrip=True, rstrip=True, normalized=False)])
    return made


def prompt(text: str, image: bool = True) -> str:
    """A question in the form of `TEMPLATE`, up to where the answer begins."""
    return _head(image) + text + _reply()


def _head(image: bool = True) -> str:
    return f"<|im_start|>{ROLES[0]}\n" + ("<|vision_start|><|image_pad|><|vision_end|>" if image else "")


def _reply() -> str:
    return f"<|im_end|>\n<|im_start|>{ROLES[1]}\n"


@cache
def _ids(text: str) -> list[int]:
    return list(tokenizer().encode(text).ids)


def around() -> tuple[list[int], list[int]]:
    """What stands before a picture and after it, in every prompt."""
    head = _ids(_head())
    at = head.index(IMAGE_ID)
    return head[:at], head[at + 1 :]


def question_ids(text: str, instructed: bool) -> list[int]:
    """What stands between picture and answer, for a question with or without LLaVA's instruction line."""
    return _ids((f"{text}\n{INSTRUCTION}" if instructed else text) + _reply())


def answer_ids(answer: str) -> list[int]:
    """An answer and the token that ends it."""
    return [*_ids(answer), END]


CHAT = Prompts(question_ids, answer_ids, PAD)
