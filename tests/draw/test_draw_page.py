"""The page: one file that fetches nothing, escapes what it is given, and knows when each token went."""

from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from fitprune.draw.asked import Asked
from fitprune.draw.page import gone, page
from fitprune.draw.places import laid_out
from fitprune.families.protocols import View

KEPT = np.array([[1, 1, 0, 1, 1, 1], [1, 0, 0, 1, 1, 0], [1, 0, 0, 1, 1, 0]], dtype=bool)
VOID = {"meta", "input", "br", "image", "rect", "path"}
EVIL = "<script>alert('1')</script> & \"quotes\" </title> {{dense}} {{ asked.dense }} {% raw %} {# <img src=//evil>"


class Reader(HTMLParser):
    """Elements with attributes, their text, and whether every tag is closed in turn."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else "", data))

    def text(self, tag: str) -> str:
        return "".join(data for within, data in self.texts if within == tag)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture
def asked() -> Asked:
    noise = np.random.default_rng(0).integers(0, 256, (28, 28, 3), dtype=np.uint8)
    where = laid_out([View(Image.fromarray(noise), 2, 2, newlines=True)])
    return Asked("a model", "What?\nOne word.", "732", "731", "fitprune", 0.5, where, KEPT)


def test_it_parses_and_says_everything(asked):
    read = Reader(page(asked, [("model", "a model"), ("saved", "50%")]))
    assert read.open == []
    assert read.text("h1") == "What?\nOne word."
    assert read.text("p").startswith("732731")
    assert "another answer" in read.text("span")
    assert "the same answer" in page(replace(asked, pruned="732"))
    assert read.text("dt") + read.text("dd") == "modelsaveda model50%"
    (slider,) = [found for found in read.all("input") if found["type"] == "range"]
    assert (slider["min"], slider["max"], slider["step"]) == ("0", "3", "1")
    assert any(label["for"] == slider["id"] for label in read.all("label"))
    assert "prefers-color-scheme: dark" in read.text("style")
    assert read.all("html") == [{"lang": "en"}]


def test_tokens_know_when_they_went(asked):
    assert gone(KEPT) == [4, 2, 1, 4, 4, 2]
    read = Reader(page(asked))
    rects = [rect for rect in read.all("rect") if "data-gone" in rect]
    assert [rect["data-gone"] for rect in rects] == ["4", "2", "4", "4", "1", "2"]  # patches, then newlines
    data = json.loads(re.search(r"const data = (.*);", page(asked))[1])
    assert data["alive"] == [6, 5, 3, 3] == asked.alive
    assert len(data["outlines"]) == 4
    assert data["outlines"][0] == ""
    assert data["outlines"][2].count("M") == 2  # around the one patch that is gone, inside the view
    bars = [float(rect["height"]) for rect in read.all("rect") if "data-gone" not in rect]
    assert bars == pytest.approx([100, 83.33, 50, 50], abs=0.01)


def test_the_image_is_inside_to_the_byte(asked):
    (image,) = Reader(page(asked)).all("image")
    kind, content = str(image["href"]).split(",")
    assert kind == "data:image/png;base64"
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))
    assert (shown == np.asarray(asked.where.canvas.crop(asked.where.views[0]))).all()


def test_nothing_is_fetched(asked):
    text = page(replace(asked, question="see"))
    assert "://" not in text
    read = Reader(text)
    for tag, attributes in read.elements:
        assert tag not in {"link", "iframe", "object", "embed", "base"}
        for name in ("src", "href", "action", "data", "srcset"):
            assert str(attributes.get(name) or "data:").startswith("data:")
    assert "url(" not in text
    assert "@import" not in text
    policy = next(m["content"] for m in read.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert str(policy).startswith("default-src 'none'")


def test_what_it_is_given_stays_text(asked):
    plain = Reader(page(asked, [("x", "y")]))
    read = Reader(page(replace(asked, question=EVIL, dense=EVIL, pruned=EVIL), [(EVIL, EVIL)]))
    assert [tag for tag, _ in read.elements] == [tag for tag, _ in plain.elements]
    assert read.text("h1") == EVIL
    assert read.text("dt") == read.text("dd") == EVIL
    assert read.text("title").startswith(EVIL)
    assert page(replace(asked, question="", dense="", pruned="")).count("(empty)") == 2


def test_without_newlines_the_legend_has_none(asked):
    assert "newline token" in page(asked)
    where = laid_out([View(Image.new("RGB", (28, 42)), 3, 2)])
    assert "newline token" not in page(replace(asked, where=where))
    assert page(asked) == page(asked)
