"""The documentation builds as a site without a warning, covers the public names, and loads nothing from another host."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path

import pytest

import fitprune

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(
    not (find_spec("zensical") and find_spec("mkdocstrings")), reason="pip install 'fitprune[docs]' brings zensical"
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built in a copy (the builder writes beside its mkdocs.yml), with every way to a network closed."""
    place = tmp_path_factory.mktemp("docs")
    shutil.copy(ROOT / "mkdocs.yml", place)
    shutil.copytree(ROOT / "docs", place / "docs")
    for needed in ("fitprune", "scripts"):
        (place / needed).symlink_to(ROOT / needed)
    closed = {f"{name}_proxy": "http://127.0.0.1:9" for name in ("http", "https", "HTTP", "HTTPS")}
    done = subprocess.run(
        [sys.executable, "-c", "from zensical.main import cli; cli()", "build", "--strict"],
        cwd=place, env={**os.environ, **closed, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    said = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout + done.stderr)
    assert done.returncode == 0, said
    assert "griffe" not in said, said  # a docstring that cannot be read
    assert "No issues found" in said
    return place / "site"


class Loads(HTMLParser):
    """What a browser fetches by itself for a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        loads = tag in ("script", "img", "iframe", "source", "video", "audio", "embed", "input")
        if loads or (tag == "link" and given.get("rel") not in ("canonical", "next", "prev")):
            self.found += [value for name in ("src", "href", "srcset") if (value := given.get(name))]


def test_nothing_is_loaded_from_another_host(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 10
    for page in pages:
        loads = Loads()
        loads.feed(page.read_text(encoding="utf-8"))
        assert loads.found
        assert not [address for address in loads.found if re.match(r"(https?:)?//", address)], page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(?:url\(|@import)\s*['\"]?(?:https?:)?//", sheet.read_text(encoding="utf-8")), sheet


def test_every_page_and_every_public_name_is_there(site: Path) -> None:
    for page in (ROOT / "docs").rglob("*.md"):
        assert (site / page.relative_to(ROOT / "docs").with_suffix(".html")).exists(), page
    reference = (site / "api" / "fitprune.html").read_text(encoding="utf-8")
    for name in fitprune.__all__:
        shown = re.search(rf'id="fitprune\.[\w.]*\b{name}"', reference)
        assert shown or name == "__version__", name
    for section in ("Parameters", "Returns", "Yields", "Raises", "Attributes"):  # docstrings became lists
        assert f">{section}:<" in reference, section
    assert not re.search(r"<p>(Args|Returns|Yields|Raises|Attributes):", reference)


def test_the_menu_names_every_page() -> None:
    menu = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in (ROOT / "docs").rglob("*.md"):
        assert f" {page.relative_to(ROOT / 'docs')}\n" in menu, page
