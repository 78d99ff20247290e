"""The tokenizer: whole words where answers and questions need them, single characters for everything written.

WordPiece over lower-cased words; "472" is 4 ##7 ##2, so that reading means naming characters (one written word in a
hundred begins with a word of the vocabulary, such as "red", and then is a token or two). Vicuna's system sentence
and LLaVA's instruction sentence are one token each: prompts are then those of LLaVA-1.5 (`vicuna_v1`) to the letter,
and as short as a small model deserves. Characters that stand nowhere in the vocabulary become `<unk>`.

    python -c "from embedded.tokens import *; print(tokenizer().encode('What number is written? 472').tokens)"
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from fitprune.families.conversation import build_prompt

from .glyphs import CHARACTERS
from .scene import COLORS, KINDS

TEMPLATE = "vicuna_v1"
IMAGE = "<image>"
INSTRUCTION = "Answer the question using a single word or phrase."
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", IMAGE)
PAD, BOS, EOS, UNKNOWN, IMAGE_ID = range(len(SPECIAL))
WORDS = (  # noqa: SIM905 (as a list: forty lines)
    "what number word is written the first second third last digit letter of color shape shapes directly left right "
    "above below how many are there or a an in this image picture yes no please answer"
).split()


def sentences() -> list[str]:
    """What is one token though it is many words: the system sentence, the roles, the instruction."""
    system, user = build_prompt(TEMPLATE, [("", None)]).split("USER: ")
    return [system.strip(), "USER:", user.strip(), INSTRUCTION]


def word_piece(special: Sequence[str], more: Sequence[str] = ()) -> Tokenizer:
    """The words and characters after the special tokens given ("<unk>" among them), with `more` words at the end."""
    plurals = [f"{kind}es" if kind.endswith("s") else f"{kind}s" for kind in KINDS]
    pieces = [*WORDS, *KINDS, *plurals, *COLORS, *CHARACTERS, *(f"##{c}" for c in CHARACTERS), *"?.,:'\"-", *more]
    vocabulary = {piece: at for at, piece in enumerate(dict.fromkeys([*special, *pieces]))}
    made = Tokenizer(models.WordPiece(vocabulary, unk_token=SPECIAL[UNKNOWN], max_input_chars_per_word=32))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    made.decoder = decoders.WordPiece(prefix="##")
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return made


@cache
def tokenizer() -> Tokenizer:
    """The tokenizer of the embedded LLaVAs; adds the BOS token, as Llama's does."""
    made = word_piece(SPECIAL)
    made.add_tokens([AddedToken(text, lstrip=True, rstrip=True, normalized=False) for text in sentences()])
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    return made


def prefix() -> list[int]:
    """What stands before the image: BOS, system sentence, role."""
    return _ids(_frame("")[0])


def question_ids(text: str, instructed: bool) -> list[int]:
    """What stands between image and answer, for a question with or without LLaVA's instruction line."""
    return _ids(_frame(f"{text}\n{INSTRUCTION}" if instructed else text)[1])[1:]


def answer_ids(answer: str) -> list[int]:
    """An answer and the token that ends it."""
    return [*_ids(answer)[1:], EOS]


def _frame(text: str) -> list[str]:
    return build_prompt(TEMPLATE, [(f"{IMAGE}\n{text}", None)]).split(IMAGE)


@cache
def _ids(text: str) -> list[int]:
    return list(tokenizer().encode(text).ids)


@dataclass(frozen=True)
class Prompts:
    """How questions and answers become tokens in training.

    question: (text, with the instruction line?) → what stands between picture and answer. answer: answer → its tokens, with
    the one that ends it. pad: fills a row up.
    """

    question: Callable[[str, bool], list[int]]
    answer: Callable[[str], list[int]]
    pad: int


VICUNA = Prompts(question_ids, answer_ids, PAD)
