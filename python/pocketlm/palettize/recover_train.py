"""Training behind palettization: codes stay; codebooks, row scales, norms and the adapter learn, end to end,
or block by block where that does not fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from pocketlm._core import WeightStore
from pocketlm.adapters.attach import LowRank, attach
from pocketlm.adapters.write import Pair
from pocketlm.errors import AdapterError
from pocketlm.loading import LoadedModel
from pocketlm.loading.check import stored_name
from pocketlm.loading.directory import DirectoryWriter
from pocketlm.loading.safetensors import SINGLE
from pocketlm.palettize.blockwise import Blocks, Task, scratch, train_blocks
from pocketlm.palettize.distil import Settings, Windows, distil
from pocketlm.palettize.progress import Progress
from pocketlm.palettize.recover import projections
from pocketlm.palettize.recovery import Recovery, Training
from pocketlm.palettize.room import end_to_end_bytes, memory_limit
from pocketlm.palettize.student import Parts, Student, Tree, learned
from pocketlm.palettize.tensors import Output

_STATE = "training.npz"
_DTYPES: dict[str, Any] = {"f32": np.float32, "f16": np.float16}
BLOCK_SETTINGS = Settings(tokens=1024)
_A, _B = ".lora_A", ".lora_B"


def train(
    model: LoadedModel,
    tensors: list[Output],
    pairs: dict[str, Pair],
    windows: NDArray[np.uint32],
    recovery: Recovery,
    writer: DirectoryWriter,
    *,
    progress: bool,
) -> tuple[dict[str, Pair], Training]:
    """Makes the model in the making learn from the source, end to end or, if that does not fit into memory,
    block by block. Writes its codebooks, scales and norms anew, and returns the adapter's matrices, with what
    came of it.

    Raises:
        AdapterError: the loss, or what was learned, is not finite.
        StorageError: the unfinished work cannot be written.
    """
    chosen = projections(tensors)
    store = WeightStore()
    store.open(writer.partial / SINGLE)
    parts = {t.name: _parts(writer, t) for t in chosen}
    terms = {name: LowRank(name + _A, name + _B, len(a)) for name, (a, _) in pairs.items()}
    matrices = {terms[name].a: a for name, (a, _) in pairs.items()}
    matrices |= {terms[name].b: b for name, (_, b) in pairs.items()}
    task = Task(model, attach(model.graph, terms), store, parts, matrices)
    settings = Settings()
    whole = _whole(model, settings, writer)  # and there is something to resume from here on
    with Progress("training", recovery.train, progress, unit="tokens") as bar:
        seen = 0

        def told(tokens: int, loss: float) -> None:
            nonlocal seen
            bar.note(f"loss {loss:.4f}")
            bar.add(tokens - seen)
            seen = tokens

        if whole:
            trained, training = _end_to_end(task, windows, recovery.train, writer, told)
        else:
            found = _by_blocks(task, windows, recovery.train, writer, told)
            trained, training = found.learned, Training(None, None, found.worse, found.count)
    _write(writer, tensors, chosen, parts, trained)
    matrices |= {name: np.asarray(trained[name]) for name in matrices if name in trained}
    made = {name: (matrices[t.a], matrices[t.b]) for name, t in terms.items()}
    return made, training


def _whole(model: LoadedModel, settings: Settings, writer: DirectoryWriter) -> bool:
    """Whether the model is trained end to end. What was decided once holds when the work is resumed."""
    note = writer.note("training")
    if note is None or "whole" not in note:
        limit = memory_limit()
        note = {"whole": limit is None or end_to_end_bytes(model.graph, settings.tokens) <= limit}
        writer.record("training", note)
    return bool(note["whole"])


def _by_blocks(
    task: Task, windows: Windows, tokens: int, writer: DirectoryWriter, told: Callable[[int, float], None]
) -> Blocks:
    """Trains block by block on ``tokens`` tokens, spread over the windows."""
    blocks = len(task.blocks())
    size = windows.shape[1] * max(1, BLOCK_SETTINGS.tokens // windows.shape[1])
    steps = -(-tokens // size)
    writer.scratch += scratch(blocks)
    count = min(len(windows), steps * size // windows.shape[1])
    some = windows[np.arange(count) * len(windows) // count]
    return train_blocks(
        task,
        some,
        steps,
        BLOCK_SETTINGS,
        writer.partial,
        lambda step, loss: told(min(tokens, step * size // blocks), loss),
    )


def _end_to_end(
    task: Task,
    windows: Windows,
    tokens: int,
    writer: DirectoryWriter,
    told: Callable[[int, float], None],
) -> tuple[Tree, Training]:
    """Distils the source into the whole model."""
    settings, model = Settings(), task.model
    student = Student(task.graph, task.store, task.parts, task.matrices)
    source: Tree = {
        weight.name: jnp.asarray(model.store.dense(stored_name(model.store, weight)))
        for weight in model.graph.weights().values()
    }
    size = windows.shape[1] * max(1, settings.tokens // windows.shape[1])  # tokens of a step
    steps = -(-tokens // size)
    writer.scratch += [_STATE, f"{_STATE}.new"]
    found = distil(
        model.graph,
        source,
        student,
        windows,
        steps,
        settings,
        writer.partial / _STATE,
        lambda step, loss: told(step * size, loss),
        adapter=frozenset(task.matrices),
    )
    few = max(1, steps // 20)
    losses = float(found.losses[:few].mean()), float(found.losses[-few:].mean())
    return found.trainable, Training(losses, found.judged, int(found.worse), 1)


def _parts(writer: DirectoryWriter, tensor: Output) -> Parts:
    """Scale and codebook of a palettized tensor as they are in the file."""
    dtypes = {"scale": np.float16, "codebook": np.int8}
    found: dict[str, Any] = {}
    for part in tensor.parts:
        what = part.name.rpartition(".")[2]
        if what in dtypes:
            found[what] = np.frombuffer(writer.read(part.name, part.nbytes), dtypes[what]).reshape(part.shape)
    return found["scale"], found.get("codebook")


def _write(
    writer: DirectoryWriter,
    tensors: list[Output],
    chosen: list[Output],
    parts: Mapping[str, Parts],
    trained: Tree,
) -> None:
    """Puts what was learned in place of what it began with.

    The journal keeps the old checksums: whoever is interrupted from here on palettizes these tensors again,
    and finds the training done.
    """
    for tensor in chosen:
        scale, codebook = learned(parts[tensor.name], tensor.kind, trained, tensor.name)
        arrays = {f"{tensor.name}.scale": scale, f"{tensor.name}.codebook": codebook}
        for part in tensor.parts:
            array = arrays.get(part.name)
            if array is not None:
                writer.write(part.name, 0, array.tobytes())
    for tensor in tensors:
        if tensor.name in trained:
            writer.write(tensor.name, 0, _stored(tensor.name, np.asarray(trained[tensor.name]), tensor.kind))
    writer.flush()


def _stored(name: str, values: NDArray[np.float32], kind: str) -> bytes:
    """What a tensor has learned, as a dense kind; bfloat16 rounded to nearest, ties to even.

    Raises:
        AdapterError: a number is not finite, or not any more as that kind.
    """
    finite = np.isfinite(values).all()
    if kind == "bf16":
        bits = values.view(np.uint32)
        stored: NDArray[Any] = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
        finite &= np.isfinite((stored.astype(np.uint32) << 16).view(np.float32)).all()
    else:
        with np.errstate(over="ignore"):
            stored = values.astype(_DTYPES[kind])
        finite &= np.isfinite(stored).all()
    if not finite:
        raise AdapterError(f"{name}: training led to numbers that are not finite")
    return stored.tobytes()
