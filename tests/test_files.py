"""Names of files that say what is in them; writing and reading is tested by what is written and read."""

from fitprune.files import file_name


def test_file_names_are_readable() -> None:
    assert file_name("llava-hf/llava-1.5-7b-hf", 0.6) == "llava-1.5-7b-hf-r60"
    assert file_name("/a/b/", 0.555, "replayed") == "b-r55.5-replayed"
