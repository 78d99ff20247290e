"""The tokenizer of an original checkpoint, with a token for `<image>` and one for padding.

Traps that are kept out. AutoTokenizer takes an original folder's `model_type` for transformers' own LLaVA and builds a tokenizer without
the dummy prefix, so the kind is chosen here by the files. transformers' Llama tokenizer leaves the prefix out where a text begins with a
space and adds it where the sentencepiece model says that there is none; here texts are split as sentencepiece does. Text after a special
token gets the prefix or not by `legacy`, whose default transformers changed, as it did BOS's: the file's value holds, else the one of the
time. And `<image>` is not in the vocabulary: it is added behind it, as in the llava-hf conversions, and padding after that.

One case is left: with `legacy` false, a space right after a special token makes one token too many, and so does a line break unless that
token is `<image>`.

    pytest tests/checkpoints/test_checkpoint_tokens.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import FitPruneError, explained, first_line
from .source import Source, read_json
from .tokenize import IMAGE
from .weights import check_pointer

PADDING = "<pad>"
SPACE = "▁"  # how sentencepiece writes it
BEFORE = {"legacy": True, "add_bos_token": True, "add_eos_token": False}  # defaults of transformers 4
ROWS = 64  # embeddings grow to a multiple of this, as in the llava-hf conversions


def original_tokenizer(source: Source) -> Any:
    """The tokenizer of an original checkpoint (or of the base of an adapter), `<image>` and padding added.

    Raises:
        FitPruneError: when there are no tokenizer files, or unreadable ones.
    """
    import transformers
    from tokenizers import AddedToken

    options: dict[str, bool] = {}
    if (model := source.get("tokenizer.model")) is not None:
        file = source.get("tokenizer_config.json")
        settings = read_json(file) if file else {}
        kind, prefixed = "LlamaTokenizer", _dummy_prefix(model)
        options = {name: value if settings.get(name) is None else bool(settings[name]) for name, value in BEFORE.items()}
    elif source.get("tokenizer.json") is not None:
        kind = "PreTrainedTokenizerFast"
    elif source.get("vocab.json") is not None:
        kind = "Qwen2Tokenizer"
    else:
        raise FitPruneError(f"{source} has no tokenizer (tokenizer.model, tokenizer.json or vocab.json): download it")
    with explained(f"cannot load the tokenizer of {source}"):
        tokenizer = getattr(transformers, kind).from_pretrained(source.place, **options)
    if model is not None:
        tokenizer = _as_sentencepiece(tokenizer, prefixed, options["legacy"])
    tokenizer.add_tokens([AddedToken(IMAGE, special=True, normalized=False)], special_tokens=True)
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.unk_token_id:
        tokenizer.add_special_tokens({"pad_token": AddedToken(PADDING, special=True, normalized=False)})
    return tokenizer


def rows_for(tokenizer: Any, vocabulary: int) -> int:
    """Rows of the embeddings that hold all tokens: those of the checkpoint, or more in a multiple of `ROWS`."""
    needed = max(tokenizer.get_vocab().values()) + 1
    return vocabulary if needed <= vocabulary else -(-needed // ROWS) * ROWS


def _dummy_prefix(path: Path) -> bool:
    """Whether a sentencepiece model puts a space before every text.

    Raises:
        FitPruneError: naming the file, when it is damaged.
    """
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2

    check_pointer(path)
    model = sentencepiece_model_pb2.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except (DecodeError, OSError) as error:
        raise FitPruneError(f"{path} is damaged or only partly downloaded ({first_line(error)}): download it again") from None
    if not model.pieces or not model.HasField("normalizer_spec"):  # which follows the pieces in the file
        raise FitPruneError(f"{path} is damaged or only partly downloaded (it ends too soon): download it again")
    return bool(model.normalizer_spec.add_dummy_prefix)


def _as_sentencepiece(tokenizer: Any, prefixed: bool, legacy: bool) -> Any:
    """The same tokens, texts split as the original's sentencepiece tokenizer does.

    With `legacy` every stretch between special tokens is given to the sentencepiece model, which adds its prefix; without,
    the text as a whole gets a prefix, whatever the model says, and so does the line break after `<image>`: LLaVA tokenises what follows
    an image as a text of its own (tokenize.py), transformers' processors do not, and so both give the same. The result is of
    transformers' generic kind, which keeps what it is given, also when it is saved and loaded again.
    Source: transformers 4.37, models/llama/tokenization_llama.py.
    """
    from tokenizers import Regex, normalizers
    from transformers import PreTrainedTokenizerFast

    backend = tokenizer.backend_tokenizer
    if legacy:
        spaces = normalizers.Replace(" ", SPACE)
        backend.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), spaces]) if prefixed else spaces
        backend.pre_tokenizer = None
    else:  # its pre-tokenizer puts the prefix before the whole, but not before a space
        spaced = normalizers.Replace(Regex(rf"\A[ {SPACE}]"), f"{SPACE} ")
        after_image = normalizers.Replace(Regex(r"\A\n"), f"{SPACE}\n")
        backend.normalizer = normalizers.Sequence([spaced, after_image])
    named = ("bos_token", "eos_token", "unk_token", "pad_token")
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        padding_side=tokenizer.padding_side,
        model_max_length=tokenizer.model_max_length,
        clean_up_tokenization_spaces=False,
        **{name: token for name in named if (token := getattr(tokenizer, name)) is not None},
    )
