"""The spelling in which TextVQA and VQAv2 compare answers ("EvalAI" or m4c normalisation).

"The U.S.A." and "usa", "two" and "2" are the same answer. The rules are odd in places (a hyphen becomes a space unless
a space stands beside any hyphen; "none" is 0; normalising twice can differ from once), but scores are comparable only
if everybody applies the same ones, so the oddities are kept and marked. The reference is the evaluator of Facebook's
MMF (mmf/datasets/processors, class EvalAIAnswerProcessor). Its table of 120 contractions is built here from the rule
behind it.

Left out: one branch of the original (a digit, a comma, a digit), which cannot be reached.

    python -c "from fitprune.evaluation.normalise import normalise; print(normalise('The U.S.A.'))"
"""

from __future__ import annotations

import re

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'  # in the order of application; ' : . $ % & # * ^ ~ | stay
NUMBER_WORDS = {"none": "0", "zero": "0"} | {
    word: str(number)
    for number, word in enumerate(["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"], start=1)
}
ARTICLES = frozenset(["a", "an", "the"])

# A period that no digit follows. The original means to spare one after a digit too, but its pattern does not.
_PERIOD = re.compile(r"\.(?!\d)")
_PERIODS_REMOVED = 32  # the original passes a flag where the count belongs

_STEMS = {
    "n't": "ai are ca could did does do had has have is might must need ought sha should was were wo would",
    "n't've": "could had might should would",
    "'ve": "could I might must not should they we what where who would you",
    "'d": "he how it someone something there they where who you",
    "'d've": "he I it she somebody someone something there they we who you y'all",
    "'ll": "how it somebody someone something they what who why you y'all",
    "'re": "there they what why you",
    "'s": "he how somebody someone that there what when where who why",
    "'m": "I",
}
_WHOLE = ["ma'am", "o'clock", "'twas", "y'all", "'ow's'at"]


def _contractions() -> dict[str, str]:
    """Each contraction keyed by what is left of it when exactly one of its apostrophes is missing.

    Entries with a capital I never match (text is lower case then); "hes" and "ill" are read as contractions although
    they may be words. Both are the original's.
    """
    forms = _WHOLE + [stem + ending for ending, stems in _STEMS.items() for stem in stems.split()]
    table = {form[:i] + form[i + 1 :]: form for form in forms for i, letter in enumerate(form) if letter == "'"}
    return table | {"let's": "let's", "she's": "she's", "somebody'd": "somebodyd"}


CONTRACTIONS = _contractions()


def normalise(answer: str) -> str:
    """The comparable spelling of an answer: `normalise("It's a cat.") == "it 's cat"`.

    Source: mmf's EvalAIAnswerProcessor (used by TextVQA's and VQAv2's evaluation servers), step by step.
    """
    text = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = text.replace("\n", " ").replace("\t", " ").strip()
    entered = text
    for mark in PUNCTUATION:
        # decided on the text as it was before any mark went
        beside_space = mark + " " in entered or " " + mark in entered
        text = text.replace(mark, "" if beside_space else " ")
    text = _PERIOD.sub("", text, count=_PERIODS_REMOVED)
    words = (NUMBER_WORDS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)
