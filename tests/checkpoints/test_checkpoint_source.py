"""Finding the files of a checkpoint, on disk or on the hub."""

from __future__ import annotations

from pathlib import Path

import pytest

from fitprune.checkpoints.source import Source
from fitprune.errors import FitPruneError


def test_a_folder_gives_its_files(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"a": 1}')
    (tmp_path / "tower").mkdir()
    source = Source(tmp_path)
    assert source.json("config.json") == {"a": 1}
    assert source.get("other.json") is None
    assert source.folders() == [tmp_path / "tower"]
    assert source.place == str(tmp_path)
    with pytest.raises(FitPruneError, match=r"no complete checkpoint: other\.json is not in this folder"):
        source.json("other.json")


def test_a_folder_goes_before_a_hub_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "liuhaotian" / "llava").mkdir(parents=True)
    assert Source("liuhaotian/llava").folder is not None
    assert Source("liuhaotian/other").folder is None


@pytest.mark.parametrize("path", ["/no/such/folder", "./nothing", "~/no-such-checkpoint", "a/b/c"])
def test_what_cannot_be_a_hub_name_is_refused(path: str) -> None:
    with pytest.raises(FitPruneError, match="no checkpoint at"):
        Source(path)


def test_a_file_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FitPruneError, match="no checkpoint at"):
        Source(tmp_path / "file")


@pytest.mark.parametrize(("text", "message"), [("{ torn", "not JSON, or torn"), ("[1]", "a JSON object was expected")])
def test_bad_json_names_the_file(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(FitPruneError, match=rf"config\.json: {message}"):
        Source(tmp_path).json("config.json")


def test_the_hub_cache_is_used_and_misses_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As offline: what is in the cache is found, the rest is an error that says so."""
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

    def download(name: str, file: str) -> str:
        if file == "config.json":
            (tmp_path / file).write_text("{}")
            return str(tmp_path / file)
        if file == "gone":
            response = type("Response", (), {"headers": {}, "request": None, "status_code": 404})()
            raise RepositoryNotFoundError("404 Client Error\nlong story", response=response)  # type: ignore[arg-type]
        raise LocalEntryNotFoundError("not cached")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    source = Source("someone/something")
    assert source.place == "someone/something"
    assert source.folders() == []
    assert source.json("config.json") == {}
    assert source.get("optional.json") is None
    with pytest.raises(FitPruneError, match="neither in the local cache nor can it be fetched"):
        source.json("other.json")
    with pytest.raises(FitPruneError, match="the hub says: 404 Client Error") as error:
        source.get("gone")
    assert "\n" not in str(error.value)
