"""The tokenizer of an original folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import example, given, settings
from hypothesis import strategies as st
from multimodal import PARITY
from sentencepiece import sentencepiece_model_pb2
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer

from fitprune.checkpoints.source import Source
from fitprune.checkpoints.tokenize import tokenize_with_images
from fitprune.checkpoints.tokenizer import original_tokenizer, rows_for
from fitprune.errors import FitPruneError

ORIGINAL = PARITY / "llava15" / "checkpoint"


def test_image_and_padding_follow_the_vocabulary() -> None:
    tokenizer = original_tokenizer(Source(ORIGINAL))
    assert tokenizer.convert_tokens_to_ids(["<image>", "<pad>"]) == [400, 401]
    assert tokenizer.pad_token_id == 401
    assert tokenizer("USER: <image>").input_ids[-1] == 400
    assert (rows_for(tokenizer, 400), rows_for(tokenizer, 402), rows_for(tokenizer, 1000)) == (448, 402, 1000)


@pytest.mark.parametrize(("legacy", "prefixed"), [(True, True), (False, False), (None, True)])
def test_text_after_a_special_token_gets_the_prefix_as_the_file_says(tmp_path: Path, legacy: bool | None, prefixed: bool) -> None:
    for file in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copy(ORIGINAL / file, tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    del settings["legacy"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | ({} if legacy is None else {"legacy": legacy})))
    tokenizer = original_tokenizer(Source(tmp_path))
    after = tokenizer.convert_ids_to_tokens(tokenizer("a</s>USER").input_ids)
    assert (after[after.index("</s>") + 1] == "▁") is prefixed


def test_a_tokenizer_json_serves_where_there_is_no_sentencepiece(tmp_path: Path) -> None:
    """As Llama-3's."""
    made = Tokenizer(models.WordLevel({"<unk>": 0, "what": 1, "<|eot_id|>": 2}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<|eot_id|>", "tokenizer_class": "PreTrainedTokenizerFast"}')
    tokenizer = original_tokenizer(Source(tmp_path))
    assert tokenizer("what").input_ids == [1]
    assert tokenizer.convert_tokens_to_ids("<image>") == 3
    assert tokenizer.pad_token_id == 4


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("dummy", [True, False])
def test_texts_are_split_as_sentencepiece_does(tmp_path: Path, dummy: bool, legacy: bool) -> None:
    """Also those that begin with a space, and with models that put no space before a text (Yi's)."""
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString((ORIGINAL / "tokenizer.model").read_bytes())
    model.normalizer_spec.add_dummy_prefix = dummy
    (tmp_path / "tokenizer.model").write_bytes(model.SerializeToString())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"legacy": legacy}))
    model.normalizer_spec.add_dummy_prefix = dummy or not legacy  # then the slow tokenizer adds it by itself
    oracle = sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())
    tokenizer = original_tokenizer(Source(tmp_path))
    tokenizer.save_pretrained(tmp_path / "saved")
    again = AutoTokenizer.from_pretrained(tmp_path / "saved")

    @settings(max_examples=150, deadline=None)
    @given(st.text("ab cdE .,\n\t#é0漢😀▁'", max_size=20))
    @example(" What?")
    @example("  \n a")
    def same(text: str) -> None:
        expected = [tokenizer.bos_token_id, *oracle.encode(text)]
        assert tokenizer(text).input_ids == again(text).input_ids == expected

    same()


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("dummy", [True, False])
def test_images_ahead_of_a_line_are_read_at_once_as_in_pieces(tmp_path: Path, dummy: bool, legacy: bool) -> None:
    """By transformers' processors and by LLaVA: text after an image is a text of its own."""
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString((ORIGINAL / "tokenizer.model").read_bytes())
    model.normalizer_spec.add_dummy_prefix = dummy
    (tmp_path / "tokenizer.model").write_bytes(model.SerializeToString())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"legacy": legacy}))
    original_tokenizer(Source(tmp_path)).save_pretrained(tmp_path / "saved")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "saved")

    @settings(max_examples=100, deadline=None)
    @given(st.text("ab E.,\n\t漢▁'", max_size=10), st.lists(st.text("ab E.,\n\t漢▁'", max_size=10), min_size=1, max_size=3))
    @example("USER: ", ["", "What?</s>USER: Why?"])
    def check(before: str, after: list[str]) -> None:
        text = before + "".join(f"<image>\n{one}" for one in after)
        assert tokenizer(text).input_ids == tokenize_with_images(tokenizer, text, [1] * len(after), 400)

    check()


def test_no_tokenizer_and_broken_ones(tmp_path: Path) -> None:
    with pytest.raises(FitPruneError, match="has no tokenizer"):
        original_tokenizer(Source(tmp_path))
    whole = (ORIGINAL / "tokenizer.model").read_bytes()
    pieces = sentencepiece_model_pb2.ModelProto()
    pieces.ParseFromString(whole)
    pieces.ClearField("normalizer_spec")
    for broken in (b"\x0a\x07nothing", b"", whole[: len(whole) // 2], pieces.SerializeToString()):
        (tmp_path / "tokenizer.model").write_bytes(broken)
        with pytest.raises(FitPruneError, match=r"tokenizer\.model is damaged or only partly downloaded") as error:
            original_tokenizer(Source(tmp_path))
        assert "\n" not in str(error.value)
    (tmp_path / "tokenizer.model").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\n")
    with pytest.raises(FitPruneError, match=r"tokenizer\.model is a git-lfs pointer"):
        original_tokenizer(Source(tmp_path))
    (tmp_path / "tokenizer.model").write_bytes(whole)
    (tmp_path / "special_tokens_map.json").write_text("[1]")
    with pytest.raises(FitPruneError, match="cannot load the tokenizer") as error:
        original_tokenizer(Source(tmp_path))
    assert "\n" not in str(error.value)
