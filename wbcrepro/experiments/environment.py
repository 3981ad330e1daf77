"""What ``env.json`` says of a run: versions, device, commit, data, weights and time. No path, user or host name."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path

import torch

import wbcrepro

PACKAGES = ("torch", "torchvision", "timm", "numpy", "pandas", "scikit-learn", "pillow", "torchstain")


@cache
def commit() -> str:
    """The commit of the checkout the package runs from, with ``+changes`` when files differ from it."""
    root = Path(wbcrepro.__file__).resolve().parents[1]
    version = f"wbcrepro {wbcrepro.__version__}"
    if not (root / ".git").exists():
        return version

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "wbcrepro")
        return (git("rev-parse", "--short=12", "HEAD") or "no commit") + ("+changes" if changed else "")
    except OSError:  # a checkout on a machine (or in a container) without the program git
        return version


@cache
def hardware(device: str) -> str:
    """The device in words: the GPU's name, or the processor's with the number of cores that we may use."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{model}, {usable} cores, no GPU"


@cache
def versions() -> dict[str, str]:
    """Python's version and those of the packages that results depend on."""
    found = {"python": platform.python_version(), "wbcrepro": wbcrepro.__version__}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def describe(device: torch.device) -> dict:
    """The part of ``env.json`` that is known before a cell runs."""
    return {
        "schema": 1,
        "versions": versions(),
        "device": str(device),
        "hardware": hardware(str(device)),
        "threads": torch.get_num_threads(),
        "commit": commit(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def resolve_device(name: str) -> torch.device:
    """``auto`` is CUDA where there is one, then MPS, then the CPU; any other name is taken as it is."""
    if name != "auto":
        return torch.device(name)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
