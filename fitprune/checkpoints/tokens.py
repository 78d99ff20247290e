"""The tokenizer of an original checkpoint, with a token for `<image>` and one for padding.

Three traps are kept out. AutoTokenizer takes an original folder's `model_type` for transformers' own LLaVA and builds a
tokenizer without the dummy prefix, so the class is chosen here by the files. Whether text after a special token gets
the prefix depends on `legacy`, whose default transformers changed: the file's value holds, else the one of the time. And
`<image>` is not in the vocabulary: it is added behind it, as in the llava-hf conversions, and padding after that.

    pytest tests/test_checkpoint_tokens.py
"""

from __future__ import annotations

from typing import Any

from ..errors import FitPruneError, first_line
from .source import Source, read_json

IMAGE, PADDING = "<image>", "<pad>"
ROWS = 64  # embeddings grow to a multiple of this, as in the llava-hf conversions


def original_tokenizer(source: Source) -> Any:
    """The tokenizer of an original checkpoint (or of the base of an adapter), `<image>` and padding added.

    Raises:
        FitPruneError: when there are no tokenizer files, or unreadable ones.
    """
    import transformers
    from tokenizers import AddedToken

    options: dict[str, Any] = {}
    if source.get("tokenizer.model") is not None:
        settings = source.get("tokenizer_config.json")
        legacy = read_json(settings).get("legacy") if settings else None
        kind, options = "LlamaTokenizer", {"legacy": True if legacy is None else legacy}
    elif source.get("tokenizer.json") is not None:
        kind = "PreTrainedTokenizerFast"
    elif source.get("vocab.json") is not None:
        kind = "Qwen2Tokenizer"
    else:
        raise FitPruneError(f"{source} has no tokenizer (tokenizer.model, tokenizer.json or vocab.json): download it")
    try:
        tokenizer = getattr(transformers, kind).from_pretrained(source.place, **options)
    except (OSError, ValueError, ImportError, RuntimeError, TypeError) as error:
        raise FitPruneError(f"cannot load the tokenizer of {source}: {first_line(error)}") from None
    tokenizer.add_tokens([AddedToken(IMAGE, special=True, normalized=False)], special_tokens=True)
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.unk_token_id:
        tokenizer.add_special_tokens({"pad_token": AddedToken(PADDING, special=True, normalized=False)})
    return tokenizer


def rows_for(tokenizer: Any, vocabulary: int) -> int:
    """Rows of the embeddings that hold all tokens: those of the checkpoint, or more in a multiple of `ROWS`."""
    needed = max(tokenizer.get_vocab().values()) + 1
    return vocabulary if needed <= vocabulary else -(-needed // ROWS) * ROWS
