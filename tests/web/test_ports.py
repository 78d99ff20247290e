"""Ports: taken before anything else, refused in one line."""

from __future__ import annotations

import argparse
import socket

import pytest

from fitprune.errors import FitPruneError
from fitprune.web.ports import address, is_loopback, listen, port


def test_a_free_port_is_listened_on() -> None:
    with listen("127.0.0.1", 0) as opened:
        number = opened.getsockname()[1]
        assert address(opened) == f"http://127.0.0.1:{number}"
        with socket.create_connection(opened.getsockname(), timeout=5):
            pass
        with pytest.raises(FitPruneError, match=rf"port {number} of 127.0.0.1 .*another --port"):
            listen("127.0.0.1", number)


@pytest.mark.parametrize("host", ["no.such.host.invalid", "203.0.113.7"])
def test_a_host_that_is_not_here(host: str) -> None:
    with pytest.raises(FitPruneError, match="cannot listen"):
        listen(host, 0)


def test_numbers_of_ports() -> None:
    assert [port(text) for text in ("0", "7860", "65535")] == [0, 7860, 65535]
    for text in ("65536", "-1", "x", ""):
        with pytest.raises(argparse.ArgumentTypeError, match="from 0 to 65535"):
            port(text)


def test_loopback() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.9.9.9", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "10.0.0.1", "example.org", "127.0.0.1.example.org")))
