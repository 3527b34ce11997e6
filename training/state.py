"""Checkpoints: everything that a run needs to go on, as one safetensors file, replaced atomically."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from pocketlm.errors import FileFormatError, MissingFileError, StorageError
from pocketlm.families import build_graph
from pocketlm.graph import Graph
from training.data import Position, read_json
from training.muon import Hyper, Tree

FORMAT = "pocketlm-training-1"
GROUPS = ("params", "momentum", "mean", "square")


@dataclass(frozen=True)
class Progress:
    """What is not a tensor.

    ``warm_from`` is the step at which the learning rate began to rise, ``decay_start`` the one at which it
    began to fall, if it did.
    """

    config: dict[str, Any]
    hyper: Hyper
    seed: int
    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    position: Position = Position()  # noqa: RUF009 (immutable)
    warm_from: int = 0
    decay_start: int | None = None
    decay_steps: int = 0


@dataclass(frozen=True)
class State:
    """Weights, moments of the optimiser, and progress."""

    params: Tree
    moments: dict[str, Tree]
    progress: Progress


def write_atomic(path: Path, data: bytes) -> None:
    """Writes a file that is either whole or not there.

    Raises:
        StorageError: the disk is full, read-only, or not permitted.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror or error}") from error


def save_state(path: Path, state: State, *, compact: bool = False) -> None:
    """Writes a checkpoint: float32 and exact, or ``compact``.

    A compact one holds weights in float16, Adam's moments in bfloat16, and no momentum of the matrices: a run
    resumed from it warms up anew.
    """
    tensors, progress = {}, state.progress
    groups = {"params": state.params, **state.moments}
    if compact:
        del groups["momentum"]
        progress = dataclasses.replace(progress, warm_from=progress.step)
    for group, tree in groups.items():
        for name, value in tree.items():
            kind = jnp.float32 if not compact else jnp.float16 if group == "params" else jnp.bfloat16
            tensors[f"{group}/{name}"] = np.asarray(value.astype(kind))
    values = json.dumps(dataclasses.asdict(progress))
    write_atomic(path, save(tensors, {"format": FORMAT, "progress": values}))


def load_state(path: Path) -> State:
    """Reads what :func:`save_state` wrote, as float32.

    Raises:
        MissingFileError, FileFormatError: naming the file.
    """
    progress = load_progress(path)
    trees: dict[str, Tree] = {group: {} for group in GROUPS}
    try:
        with safe_open(path, "np") as file:
            for key in file.keys():  # noqa: SIM118 (not a mapping)
                group, name = key.split("/", 1)
                trees[group][name] = jnp.asarray(file.get_tensor(key)).astype(jnp.float32)
    except (SafetensorError, ValueError, KeyError, OSError) as error:
        raise FileFormatError(f"{path}: {error}") from error
    params = trees.pop("params")
    rest = {name: jnp.zeros_like(value) for name, value in params.items() if name not in trees["mean"]}
    trees["momentum"] = {**rest, **trees["momentum"]}
    return State(params, trees, progress)


def load_progress(path: Path) -> Progress:
    """Reads only the progress of a checkpoint."""
    if not path.is_file():
        raise MissingFileError(f"{path}: no such checkpoint")
    try:
        with safe_open(path, "np") as file:
            metadata = file.metadata() or {}
        if metadata.get("format") != FORMAT:
            raise FileFormatError(f"{path}: not a training checkpoint ({metadata.get('format')!r:.40})")
        values = json.loads(metadata["progress"])
        values["hyper"] = Hyper(**values["hyper"])
        values["position"] = Position(**values["position"])
        return Progress(**values)
    except (SafetensorError, ValueError, KeyError, TypeError, OSError) as error:
        raise FileFormatError(f"{path}: {error}") from error


def save_weights(path: Path, params: Tree, dtype: str = "float32") -> None:
    """Writes weights alone, as a Hugging Face checkpoint names them."""
    tensors = {name: np.asarray(value.astype(dtype)) for name, value in params.items()}
    write_atomic(path, save(tensors, {"format": "pt"}))


def load_weights(path: Path) -> Tree:
    """Weights as float32, from a file of weights or a checkpoint."""
    if not path.is_file():
        raise MissingFileError(f"{path}: no such file")
    try:
        with safe_open(path, "np") as file:
            keys = list(file.keys())
            prefix = "params/" if any(key.startswith("params/") for key in keys) else ""
            return {
                key.removeprefix(prefix): jnp.asarray(file.get_tensor(key)).astype(jnp.float32)
                for key in keys
                if key.startswith(prefix)
            }
    except (SafetensorError, ValueError, OSError) as error:
        raise FileFormatError(f"{path}: {error}") from error


def load_model(path: Path) -> tuple[Graph, Tree]:
    """The graph and the weights of a model's folder, or of a checkpoint."""
    if path.is_dir():
        return build_graph(read_json(path / "config.json")), load_weights(path / "model.safetensors")
    state = load_state(path)
    return build_graph(state.progress.config), state.params
