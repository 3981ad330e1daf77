"""Weights as safetensors and resumable checkpoints: written aside and renamed, the one before kept.

A kill at any moment leaves either the new or the old file under a name; a checkpoint that cannot be read falls back
to the one before, from which the same epochs are run again.
"""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from tqdm.auto import tqdm

from wbcrepro.errors import UsageError

CURRENT, PREVIOUS = "checkpoint.pt", "checkpoint.previous.pt"


def save_weights(model: nn.Module, path: Path) -> None:
    """The state dict as safetensors, by rename."""
    temporary = path.with_name(path.name + ".part")
    save_file({name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}, temporary)
    os.replace(temporary, path)


def load_weights(model: nn.Module, path: Path) -> None:
    """Read what ``save_weights`` wrote; every name must match."""
    model.load_state_dict(load_file(path))


def run_identity(settings: dict, *arrays: np.ndarray) -> str:
    """What a checkpoint must agree on before a run goes on from it: settings, and arrays of integers."""
    data = [hashlib.sha256(np.ascontiguousarray(a, dtype=np.int64).tobytes()).hexdigest()[:16] for a in arrays]
    return json.dumps({**settings, "data": data}, sort_keys=True)


def save_checkpoint(folder: Path, parts: dict, identity: str, history: list[dict], device: torch.device) -> None:
    """Write a checkpoint of everything that the next epoch depends on, keep the one before, and write log.jsonl."""
    state = {name: part.state_dict() for name, part in parts.items()}
    state |= {"identity": identity, "history": history, "rng": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda_rng"] = torch.cuda.get_rng_state(device)
    current, temporary = folder / CURRENT, folder / f"{CURRENT}.part"
    with open(temporary, "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    if current.is_file():
        os.replace(current, folder / PREVIOUS)
    os.replace(temporary, current)
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in history), encoding="utf-8")


def resume(folder: Path, parts: dict, identity: str, device: torch.device) -> list[dict]:
    """Load the newest checkpoint that can be read into ``parts``; the history so far, empty for a fresh start."""
    for name in (CURRENT, PREVIOUS):
        try:
            state = torch.load(folder / name, map_location="cpu", weights_only=True)
        except FileNotFoundError:
            continue
        except Exception as error:  # a truncated archive raises several types
            tqdm.write(f"{name} cannot be read ({type(error).__name__}); falling back to the checkpoint before it")
            (folder / name).unlink()  # or the next save would put it in the place of the good one
            continue
        if state["identity"] != identity:
            raise UsageError(f"{folder / name} belongs to other settings: expected {identity}, got "
                             f"{state['identity']}. Next step: use another folder, or delete this one.")
        for part in parts:
            parts[part].load_state_dict(state[part])
        torch.set_rng_state(state["rng"])
        if device.type == "cuda" and "cuda_rng" in state:
            torch.cuda.set_rng_state(state["cuda_rng"], device)
        return state["history"]
    return []
