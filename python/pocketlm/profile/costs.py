"""What a matrix product of a shape takes with each kind of weight on this machine: measured, and kept.

Random weights of the shape run through the same engine, in so many copies that they take the memory of the
model in question: a small model lives in caches, a large one does not. A model with many shapes is
measured at some of them and interpolated by size between.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from pocketlm._core import Engine, WeightStore
from pocketlm.builder import GraphBuilder
from pocketlm.graph import Weight
from pocketlm.kinds import PALETTE_KINDS
from pocketlm.loading.files import write_whole

Shape = tuple[int, int]
Seconds = tuple[float, float]  # of one product when decoding, and when prefilling ROWS rows

ROWS = 256
MOST_SHAPES = 8  # measured; others lie between
_MOST_BYTES = 128 << 20  # of all copies together: larger than caches
_MOST_COPIES = 96
_PASSES = 3  # through the kinds of a shape, for machines whose load changes
_DECODES, _PREFILLS = 15, 3  # steps of a pass
_HEAD = 64


class Costs:
    """Times of products by shape and kind, from the cache of this machine where it has them.

    Args:
        fingerprint: of the machine and the engine's settings.
        threads: of a step.
        model_bytes: of the weights that a step of the model reads.
        directory: of the cache; ``None`` keeps nothing.
        precise: activations are in float32, so that other kernels run.
    """

    def __init__(
        self,
        fingerprint: str,
        threads: int,
        model_bytes: int,
        directory: Path | None,
        *,
        precise: bool = False,
    ) -> None:
        self._threads, self._precise = threads, precise
        fingerprint += "-precise" if precise else ""
        # Sizes within a factor of two share measurements.
        self._footprint = min(_MOST_BYTES, 1 << max(20, (model_bytes - 1).bit_length()))
        self._path = None if directory is None else directory / f"products-{fingerprint}.json"
        self._known: dict[str, list[float]] = _read(self._path)
        self._points: dict[str, list[tuple[int, Seconds]]] = {}

    def measure(
        self,
        shapes: Iterable[Shape],
        kinds: Sequence[str],
        progress: Callable[[int, int], object] | None = None,
    ) -> None:
        """Measures what :meth:`seconds` needs for these shapes and kinds and is not known yet."""
        chosen = representative(sorted(set(shapes), key=lambda shape: (shape[0] * shape[1], shape)))
        missing = {s: [k for k in kinds if self._key(s, k) not in self._known] for s in chosen}
        runs = [(s, k) for s in chosen for _ in range(_PASSES) for k in missing[s]]
        for done, (shape, kind) in enumerate(runs):
            if progress is not None:
                progress(done, len(runs))
            found, key = self._run(shape, kind), self._key(shape, kind)
            self._known[key] = [*map(min, found, self._known.get(key, found))]
        if runs:
            _write(self._path, self._known)
        for kind in kinds:
            self._points[kind] = [
                (shape[0] * shape[1], self._pair(self._known[self._key(shape, kind)])) for shape in chosen
            ]
        self._exact = {(s, k): self._pair(self._known[self._key(s, k)]) for s in chosen for k in kinds}

    def seconds(self, shape: Shape, kind: str) -> Seconds:
        """Seconds of a product when decoding, and for each chunk of :data:`ROWS` rows of a prefill."""
        exact = self._exact.get((shape, kind))
        return exact if exact is not None else interpolate(self._points[kind], shape[0] * shape[1])

    @staticmethod
    def _pair(values: list[float]) -> Seconds:
        return values[0], values[1]

    def _key(self, shape: Shape, kind: str) -> str:
        return f"{shape[0]}x{shape[1]} {kind} {self._footprint >> 20}MB"

    def _run(self, shape: Shape, kind: str) -> Seconds:
        # As many copies for every kind: what has fewer bits then takes less of the caches, as in the model.
        copies = self._footprint // max(1, shape[0] * shape[1] // 2)
        copies = max(1, min(_MOST_COPIES, copies))
        decode = self._time(shape, kind, copies, 1, _DECODES)
        return decode, self._time(shape, kind, min(copies, 2), ROWS, _PREFILLS)

    def _time(self, shape: Shape, kind: str, copies: int, rows: int, steps: int) -> float:
        """Seconds of one product: the mean over the copies of each copy's lowest decile of several steps."""
        store = _store(shape, kind, copies)
        engine = Engine(
            _graph(shape, copies),
            store,
            threads=self._threads,
            cache_tokens=rows,
            max_rows=rows,
            precise=self._precise,
        )
        linear = [at for at, phase in enumerate(engine.phases()) if phase["kind"] == "linear"]
        sequence = engine.sequence()
        try:
            found = []
            for _ in range(steps + 1):
                times = engine.step_timed([(sequence, [i % _HEAD for i in range(rows)], None, "last")])[1]
                sequence.truncate(0)
                found.append([times[at] for at in linear])
            return float(np.quantile(found[1:], 0.1, axis=0).mean())
        finally:
            sequence.free()
            engine.close()


def representative(shapes: Sequence[Shape]) -> list[Shape]:
    """At most :data:`MOST_SHAPES` of some shapes sorted by size: the smallest, the largest, and some
    between."""
    if len(shapes) <= MOST_SHAPES:
        return list(shapes)
    return [shapes[round(i * (len(shapes) - 1) / (MOST_SHAPES - 1))] for i in range(MOST_SHAPES)]


def interpolate(points: Sequence[tuple[int, Seconds]], size: int) -> Seconds:
    """Times at a size, linear between measured sizes."""
    sizes = [float(size) for size, _ in points]
    decode, prefill = (
        float(np.interp(size, sizes, [seconds[step] for _, seconds in points])) for step in (0, 1)
    )
    return decode, prefill


def cache_directory() -> Path | None:
    """Where this user's measurements are kept; ``None`` for a user without a home."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    if root and Path(root).is_absolute():
        return Path(root) / "pocketlm"
    try:
        return Path.home() / ".cache" / "pocketlm"
    except RuntimeError:  # no HOME, and a user that the system does not know
        return None


def _graph(shape: Shape, copies: int) -> str:
    """Copies of one product, each of an input of its own so that none share a phase. An attention at the
    end keeps them before the tail, where all rows are computed."""
    rows, cols = shape
    b = GraphBuilder("products", _HEAD, ROWS)
    for copy in range(copies):
        x = b.embed(f"x{copy}", Weight("table", (_HEAD, cols)))
        b.linear(x, f"y{copy}", f"w{copy}", rows)
    x = b.embed("x", Weight("head", (_HEAD, _HEAD)))
    b.attention(x, x, x, "attention", heads=1, kv_heads=1, head_dim=_HEAD, scale=1.0, cache=0)
    return b.build().to_json()


def _store(shape: Shape, kind: str, copies: int) -> WeightStore:
    rows, cols = shape
    random = np.random.default_rng(0)
    store = WeightStore()
    store.add("table", random.standard_normal((_HEAD, cols), np.float32))
    store.add("head", random.standard_normal((_HEAD, _HEAD), np.float32))
    # Copies lie apart in memory; that their values are the same costs no time and saves some.
    if kind in PALETTE_KINDS:
        bits, entries = PALETTE_KINDS[kind].bits, PALETTE_KINDS[kind].entries
        tiles = -(-rows // 16)
        codes = np.frombuffer(random.bytes(tiles * -(-cols // 32) * 64 * bits), np.uint8).reshape(tiles, -1)
        if not entries:
            codes = np.maximum(codes.view(np.int8), -127).view(np.uint8)
        book = np.arange(-(entries // 2), entries - entries // 2, dtype=np.int8)
        codebook = np.ascontiguousarray(np.broadcast_to(book, (tiles, entries)))
        scale = np.full(rows, 0.01, np.float16)
        for copy in range(copies):
            store.add_palette(f"w{copy}", kind, shape, codes, codebook, scale)
        return store
    if kind == "f32":
        values: Any = random.random(shape, np.float32)
    else:
        # Random mantissas of numbers from 0.5 to 1.
        low, exponent = (0x007F, 0x3F00) if kind == "bf16" else (0x03FF, 0x3800)
        halves = np.frombuffer(random.bytes(2 * rows * cols), np.uint16).reshape(shape)
        values = (halves & np.uint16(low)) | np.uint16(exponent)
    for copy in range(copies):
        store.add(f"w{copy}", values, None if kind == "f32" else kind)
    return store


def _read(path: Path | None) -> dict[str, list[float]]:
    """What was measured before; a cache that cannot be used is no error."""
    if path is None:
        return {}
    try:
        found: Any = json.loads(path.read_text())
        return {
            str(key): [float(value) for value in values]
            for key, values in found.items()
            if len(values) == 2 and all(0 < float(value) < 1e3 for value in values)
        }
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _write(path: Path | None, known: dict[str, list[float]]) -> None:
    """Keeps measurements, whole or not at all."""
    if path is None:
        return
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(known, indent=1))
