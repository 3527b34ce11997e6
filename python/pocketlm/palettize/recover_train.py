"""Training behind palettization: codes stay; codebooks, row scales, norms and the adapter learn."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from pocketlm._core import WeightStore
from pocketlm.adapters.attach import LowRank, attach
from pocketlm.adapters.write import Pair
from pocketlm.loading import LoadedModel
from pocketlm.loading.check import stored_name
from pocketlm.loading.directory import DirectoryWriter
from pocketlm.loading.safetensors import SINGLE
from pocketlm.palettize.distil import Settings, distil
from pocketlm.palettize.progress import Progress
from pocketlm.palettize.recover import projections
from pocketlm.palettize.recovery import Recovery
from pocketlm.palettize.student import Student, Tree
from pocketlm.palettize.tensors import Output

_STATE = "training.npz"
_DTYPES: dict[str, Any] = {"f32": np.float32, "f16": np.float16}
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
) -> tuple[dict[str, Pair], tuple[float, float]]:
    """Distils the source into the model in the making: writes its codebooks, scales and norms anew, and
    returns the adapter's matrices with the losses at the beginning and at the end.

    Raises:
        AdapterError: the loss is not finite.
        StorageError: the unfinished work cannot be written.
    """
    chosen = projections(tensors)
    store = WeightStore()
    store.open(writer.partial / SINGLE)
    parts = {t.name: _parts(writer, t) for t in chosen}
    terms = {name: LowRank(name + _A, name + _B, len(a)) for name, (a, _) in pairs.items()}
    matrices = {terms[name].a: a for name, (a, _) in pairs.items()}
    matrices |= {terms[name].b: b for name, (_, b) in pairs.items()}
    student = Student(attach(model.graph, terms), store, parts, matrices)
    source: Tree = {
        weight.name: jnp.asarray(model.store.dense(stored_name(model.store, weight)))
        for weight in model.graph.weights().values()
    }
    settings = Settings()
    size = max(1, settings.tokens // windows.shape[1]) * windows.shape[1]  # tokens of a step
    steps = -(-recovery.train // size)
    state = writer.partial / _STATE
    writer.scratch += [_STATE, f"{_STATE}.new"]
    writer.record("training", {})  # there is something to resume
    with Progress("training", steps * size, progress, unit="tokens") as bar:
        seen = 0

        def told(step: int, loss: float) -> None:
            nonlocal seen
            bar.note(f"loss {loss:.4f}")
            bar.add((step - seen) * size)
            seen = step

        names = frozenset(matrices)
        trained, losses = distil(
            model.graph, source, student, windows, steps, settings, state, told, adapter=names
        )
    _write(writer, tensors, chosen, student, trained)
    few = max(1, steps // 20)
    learned = {name: (np.asarray(trained[t.a]), np.asarray(trained[t.b])) for name, t in terms.items()}
    return learned, (float(losses[:few].mean()), float(losses[-few:].mean()))


def _parts(writer: DirectoryWriter, tensor: Output) -> tuple[NDArray[np.float16], NDArray[np.int8] | None]:
    """Scale and codebook of a palettized tensor as they are in the file."""
    dtypes = {"scale": np.float16, "codebook": np.int8}
    found: dict[str, Any] = {}
    for part in tensor.parts:
        what = part.name.rpartition(".")[2]
        if what in dtypes:
            found[what] = np.frombuffer(writer.read(part.name, part.nbytes), dtypes[what]).reshape(part.shape)
    return found["scale"], found.get("codebook")


def _write(
    writer: DirectoryWriter, tensors: list[Output], chosen: list[Output], student: Student, trained: Tree
) -> None:
    """Puts what was learned in place of what it began with.

    The journal keeps the old checksums: whoever is interrupted from here on palettizes these tensors again,
    and finds the training done.
    """
    for tensor in chosen:
        scale, codebook = student.result(trained, tensor.name)
        arrays = {f"{tensor.name}.scale": scale, f"{tensor.name}.codebook": codebook}
        for part in tensor.parts:
            array = arrays.get(part.name)
            if array is not None:
                writer.write(part.name, 0, array.tobytes())
    for tensor in tensors:
        if tensor.name in trained:
            writer.write(tensor.name, 0, _stored(np.asarray(trained[tensor.name]), tensor.kind))
    writer.flush()


def _stored(values: NDArray[np.float32], kind: str) -> bytes:
    """Values as a dense kind; bfloat16 rounded to nearest, ties to even."""
    if kind != "bf16":
        return values.astype(_DTYPES[kind]).tobytes()
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16).tobytes()
