"""Names of files that say what is in them; writing and reading is tested by what is written and read."""

from pathlib import Path

import pytest

from fitprune.files import file_name, model_names


def test_file_names_are_readable() -> None:
    assert file_name("llava-hf/llava-1.5-7b-hf", 0.6) == "llava-1.5-7b-hf-r60"
    assert file_name("/a/b/", 0.555, "replayed") == "b-r55.5-replayed"


HASH = "b4ba482"


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("liuhaotian/llava-v1.5-7b", "llava-v1.5-7b"),
        ("/data/llava-v1.5-7b/", "llava-v1.5-7b"),
        ("~/models/llava-v1.5-7b//", "llava-v1.5-7b"),
        ("./LLaVA-v1.5-7B/.", "LLaVA-v1.5-7B"),
        (r"C:\models\llava-v1.5-7b", "llava-v1.5-7b"),
        (f"/root/.cache/huggingface/hub/models--liuhaotian--llava-v1.5-7b/snapshots/{HASH}", "llava-v1.5-7b"),
        (f"/root/.cache/huggingface/hub/models--liuhaotian--llava-v1.5-7b/snapshots/{HASH}/", "llava-v1.5-7b"),
        ("/hub/models--liuhaotian--llava-v1.5-7b", "llava-v1.5-7b"),
        ("/hub/models--org--a--b/snapshots/main", "a--b"),
        ("/root/.cache/modelscope/hub/models/llava-hf/llava-1___5-7b-hf", "llava-1.5-7b-hf"),
        ("checkpoints/llava/checkpoint-500/", "llava_checkpoint-500"),
        (f"/elsewhere/snapshots/{HASH}", HASH),
        ("embedded", "embedded"),
        ("/", "model"),
    ],
)
def test_a_checkpoint_is_called_as_its_path_says(path: str, name: str) -> None:
    assert model_names(path) == [name]
    assert file_name(path, 0.6) == f"{name}-r60"


def test_a_checkpoint_is_called_as_what_its_path_leads_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = tmp_path / "models--liuhaotian--llava-v1.5-7b" / "snapshots" / HASH
    snapshot.mkdir(parents=True)
    (tmp_path / "link").symlink_to(snapshot)
    assert model_names(tmp_path / "link") == ["link", "llava-v1.5-7b"]
    assert model_names(snapshot) == ["llava-v1.5-7b"]
    monkeypatch.chdir(snapshot)
    assert model_names(".") == ["llava-v1.5-7b"]
    monkeypatch.chdir(snapshot.parent)
    assert model_names("..") == ["llava-v1.5-7b"]
    monkeypatch.setenv("HOME", str(snapshot))
    assert model_names("~") == ["llava-v1.5-7b"]
