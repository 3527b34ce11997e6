"""Importance of input channels from calibration text: the mean square of what each projection reads.

The error of an output is Σ_k (w - ŵ)_k x_k; with inputs taken as uncorrelated its mean square is Σ_k (w -
ŵ)_k² E[x_k²]. So E[x_k²] is how much the squared error of column k counts (the importance matrix of
llama.cpp, the diagonal of GPTQ's Hessian). Sums are kept in float64, one vector for each projection; text is
run in chunks whose traces stay bounded.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketlm._core import WeightStore
from pocketlm.errors import FileFormatError, ParameterError
from pocketlm.graph import Graph
from pocketlm.loading import LoadedModel
from pocketlm.loading.check import stored_name
from pocketlm.loading.files import as_path, storage_errors

Trace = Callable[[Sequence[int]], Mapping[str, NDArray[Any]]]

MAX_TOKENS = 16384  # a mean over so many is close enough, and a 1.1B model runs them in minutes
_TRACE_BYTES = 256 << 20
_FILE_BYTES = 1 << 20  # read of a file: more than MAX_TOKENS of any ordinary text
_PIECE = 1 << 16  # characters tokenized at a time


def read_calibration(calibration: str | PathLike[str] | Iterable[str]) -> list[str]:
    """Texts from a file (of a large one the beginning, which is enough), or the given ones.

    Raises:
        MissingFileError, StorageError, FileFormatError: the file cannot be read.
        ParameterError: there is no text.
    """
    texts: list[str]
    match calibration:
        case str() | PathLike():
            texts = [_beginning(as_path(calibration, "calibration"))]
        case _:
            texts = list(calibration)
    if not all(isinstance(text, str) for text in texts):
        raise ParameterError("calibration: must be the path of a text file, or texts")
    if not any(text.strip() for text in texts):
        raise ParameterError("calibration: there is no text")
    return texts


def _beginning(path: Path) -> str:
    with storage_errors(path), path.open("rb") as file:
        data = file.read(_FILE_BYTES)
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        return decoder.decode(
            data, final=len(data) < _FILE_BYTES
        )  # a character that the limit cuts is left out
    except UnicodeDecodeError as error:
        raise FileFormatError(f"{path}: not UTF-8 ({error.reason} at byte {error.start})") from error


def chunk_length(graph: Graph) -> int:
    """Tokens to trace at once, so that the values of all operations stay within bounds."""
    width = sum(op.width for op in graph.ops)
    return max(1, min(512, graph.context_length, _TRACE_BYTES // (4 * width)))


def chunks(model: LoadedModel, texts: Iterable[str], length: int) -> Iterator[list[int]]:
    """Token ids of the texts in runs of at most ``length``, at most :data:`MAX_TOKENS` in all."""
    left = MAX_TOKENS
    for text in texts:
        for piece in range(0, len(text), _PIECE):
            ids = model.tokenizer.encode(text[piece : piece + _PIECE]).ids[:left]
            left -= len(ids)
            for start in range(0, len(ids), length):
                yield ids[start : start + length]
            if not left:
                return


def second_moments(
    graph: Graph, store: WeightStore, trace: Trace, runs: Iterable[Sequence[int]]
) -> dict[str, NDArray[np.float32]]:
    """E[x²] of each input channel of each projection: tensor name to [inputs].

    ``trace`` maps token ids to the value [tokens, width] of each operation. Tensors that several operations
    read get the sum over them.
    """
    sums: dict[str, NDArray[np.float64]] = {}
    count = 0
    for ids in runs:
        values = trace(ids)
        count += len(ids)
        squares: dict[int, NDArray[np.float64]] = {}
        for op in graph.linears():
            if op.x not in squares:
                x = np.asarray(values[graph.ops[op.x].name], np.float64)
                squares[op.x] = np.einsum("tk,tk->k", x, x)
            name = stored_name(store, op.weight)
            sums[name] = sums.get(name, 0.0) + squares[op.x]
    return {name: (total / max(count, 1)).astype(np.float32) for name, total in sums.items()}


@contextmanager
def engine_trace(model: LoadedModel, length: int, threads: int | None) -> Iterator[Trace]:
    """A trace of runs of up to ``length`` tokens by the engine, on the model's own weights, unquantized."""
    # Imported here, as all of the engine: only calibration runs a model.
    from pocketlm._core import Engine

    engine = Engine(
        model.graph.to_json(),
        model.store,
        threads=threads,
        cache_tokens=length,
        max_rows=length,
        precise=True,
    )
    try:
        yield engine.trace
    finally:
        engine.close()
        # The pass has touched every weight; what follows goes tensor by tensor.
        for name in model.store.names():
            model.store.release(name)
