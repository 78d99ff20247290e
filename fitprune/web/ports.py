"""Where a server listens: the port is taken, or refused in one line, before any model is loaded.

python -c "from fitprune.web.ports import listen; print(listen('127.0.0.1', 0).getsockname())"
"""

from __future__ import annotations

import argparse
import ipaddress
import os
import socket

from ..errors import FitPruneError


def port(text: str) -> int:
    """argparse type of a port, 0 for a free one."""
    if text.isdecimal() and int(text) < 2**16:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text} is not a port: a whole number from 0 to {2**16 - 1}")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches that host."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def exposure_warning(host: str, what: str) -> str:
    """The line that warns of a host which others can reach, empty for loopback; `what` is what they can use then."""
    if is_loopback(host):
        return ""
    return f"warning: {host} is not loopback: whoever reaches this machine can use {what}, without a password and unencrypted"


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one.

    Raises:
        FitPruneError: for a host that is not this machine's, and a port that is taken or not allowed.
    """
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        number = getattr(error, "errno", None) or 0
        said = os.strerror(number) if number > 0 else str(error)
        raise FitPruneError(f"cannot listen on port {port} of {host} ({said}): give another --port, 0 for a free one") from None


def address(listening: socket.socket) -> str:
    """The URL of a listening socket."""
    host, number = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{number}"
