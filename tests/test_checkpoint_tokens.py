"""The tokenizer of an original folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from multimodal import PARITY
from tokenizers import Tokenizer, models, pre_tokenizers

from fitprune.checkpoints.source import Source
from fitprune.checkpoints.tokens import original_tokenizer, rows_for
from fitprune.errors import FitPruneError

ORIGINAL = PARITY / "llava15" / "checkpoint"


def test_image_and_padding_follow_the_vocabulary() -> None:
    tokenizer = original_tokenizer(Source(ORIGINAL))
    assert tokenizer.convert_tokens_to_ids(["<image>", "<pad>"]) == [400, 401]
    assert tokenizer.pad_token_id == 401
    assert tokenizer("USER: <image>").input_ids[-1] == 400
    assert (rows_for(tokenizer, 400), rows_for(tokenizer, 402), rows_for(tokenizer, 1000)) == (448, 402, 1000)


@pytest.mark.parametrize(("legacy", "prefixed"), [(True, True), (False, False), (None, True)])
def test_text_after_a_special_token_gets_the_prefix_as_the_file_says(
    tmp_path: Path, legacy: bool | None, prefixed: bool
) -> None:
    for file in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copy(ORIGINAL / file, tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    del settings["legacy"]
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps(settings | ({} if legacy is None else {"legacy": legacy}))
    )
    tokenizer = original_tokenizer(Source(tmp_path))
    after = tokenizer.convert_ids_to_tokens(tokenizer("a</s>USER").input_ids)
    assert (after[after.index("</s>") + 1] == "▁") is prefixed


def test_a_tokenizer_json_serves_where_there_is_no_sentencepiece(tmp_path: Path) -> None:
    """As Llama-3's."""
    made = Tokenizer(models.WordLevel({"<unk>": 0, "what": 1, "<|eot_id|>": 2}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(
        '{"eos_token": "<|eot_id|>", "tokenizer_class": "PreTrainedTokenizerFast"}'
    )
    tokenizer = original_tokenizer(Source(tmp_path))
    assert tokenizer("what").input_ids == [1]
    assert tokenizer.convert_tokens_to_ids("<image>") == 3
    assert tokenizer.pad_token_id == 4


def test_no_tokenizer_and_a_broken_one(tmp_path: Path) -> None:
    with pytest.raises(FitPruneError, match="has no tokenizer"):
        original_tokenizer(Source(tmp_path))
    (tmp_path / "tokenizer.model").write_bytes(b"\x0a\x07nothing")
    with pytest.raises(FitPruneError, match="cannot load the tokenizer") as error:
        original_tokenizer(Source(tmp_path))
    assert "\n" not in str(error.value)
