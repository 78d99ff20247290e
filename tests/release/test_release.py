"""What a release says about itself is true: one version everywhere, the limits that SECURITY.md names, the grammar of the oldest Python."""

from __future__ import annotations

import ast
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

import fitprune.version
from fitprune.web import untrusted

ROOT = Path(__file__).parents[2]
SOURCES = sorted(
    path
    for folder in ("fitprune", "embedded", "scripts", "tests", *map(str, ROOT.glob("LLaVA_*")))
    for path in (ROOT / folder).rglob("*.py")
)


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_one_version_everywhere() -> None:
    version = fitprune.version.__version__
    assert re.findall(r"^version: (.*)$", text("CITATION.cff"), re.MULTILINE) == [version]
    dated = re.findall(r"^## \[([\d.]+)\] - (\d{4}-\d\d-\d\d)$", text("CHANGELOG.md"), re.MULTILINE)
    assert dated[0] == (version, re.findall(r'^date-released: "(.*)"$', text("CITATION.cff"), re.MULTILINE)[0])
    assert re.search(rf"^## From [\d.]+ to {re.escape(version)}$", text("docs/upgrading.md"), re.MULTILINE)


def test_sources_are_of_the_oldest_grammar() -> None:
    (oldest,) = re.findall(r'^requires-python = ">=3\.(\d+)"$', text("pyproject.toml"), re.MULTILINE)
    assert len(SOURCES) > 300
    for path in SOURCES:
        ast.parse(path.read_text(encoding="utf-8"), str(path), feature_version=(3, int(oldest)))


def test_a_newer_grammar_is_noticed() -> None:
    with pytest.raises(SyntaxError):
        ast.parse("try:\n    pass\nexcept* ValueError:\n    pass\n", feature_version=(3, 10))


def test_the_limits_of_the_servers_are_those_that_are_told() -> None:
    told = text("SECURITY.md")
    assert f"{untrusted.MAX_BYTES >> 20} MB or {untrusted.MAX_SIDE} pixels" in told
    assert "PNG, JPEG, WebP, GIF and BMP" in told
    assert [
        name.upper() for name in re.findall(r"PNG|JPEG|WebP|GIF|BMP", told.split("Pillow's decoders of")[1].split(" alone")[0])
    ] == list(untrusted.FORMATS)
    from fitprune.web import serve
    from fitprune.web.demo import uploads

    assert f"at most {serve.MAX_REQUEST_BYTES >> 20} MiB" in told
    assert f"{uploads.MAX_TOTAL_BYTES >> 20} MB of uploads" in told
    if find_spec("gradio"):
        from fitprune.web.demo import server

        assert f"{server.MAX_CALL_BYTES >> 10} KiB" in told


def test_files_that_run_code_when_read_are_never_read() -> None:
    """No pickle is loaded but by PyTorch's restricted reader."""
    for path in (ROOT / "fitprune").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            assert called not in ("pickle.load", "pickle.loads", "torch.jit.load", "numpy.load", "np.load", "eval", "exec"), (path, called)
            if called == "torch.load":
                assert any(word.arg == "weights_only" and ast.unparse(word.value) == "True" for word in node.keywords), path
            trusts = [ast.unparse(word.value) for word in node.keywords if word.arg == "trust_remote_code"]
            assert set(trusts) <= {"False"}, path
