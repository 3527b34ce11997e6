"""What calibration found out about a model, as it lies on the disk.

A directory with ``calibration.json`` and one file for each matrix of statistics. The largest are [inputs,
inputs], so they are read when asked for and not kept.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketlm.errors import FileFormatError, MissingFileError, ParameterError
from pocketlm.graph import Embed, Linear
from pocketlm.loading import LoadedModel
from pocketlm.loading.check import stored_name
from pocketlm.loading.files import as_path, read_json, require_directory, storage_errors
from pocketlm.palettize.arrays import load_array

MANIFEST = "calibration.json"
VERSION = 2
_TILE = 16  # rows
_MOST = 1 << 31  # of anything that is counted
_LEAST = 1e-3  # of a row's weight, beside the mean of its group: no row may become anything at all


@dataclasses.dataclass(frozen=True)
class Group:
    """Rows ``start`` to ``stop`` of a tensor, the second moment [inputs, inputs] that their errors meet, and
    how much each row's error counts beside the others' [stop - start]."""

    start: int
    stop: int
    moment: NDArray[np.float32]
    row_weights: NDArray[np.float32]


@dataclasses.dataclass(frozen=True)
class Calibration:
    """A stored calibration.

    Attributes:
        path: its directory.
        model: which model it is of (see :func:`identify`).
        key: a hexadecimal number that says what was computed: of which model, from which text, how.
        tokens: how many tokens it is from.
        guided: into how many groups at most the rows of a tensor are divided, each with a second moment
            weighted by the loss's gradients; 0 if there are none.
        tokenizer: which vocabulary the text was tokenized by (see :func:`vocabulary`); ``None`` where that
            was not noted.
        tensors: for each tensor its shape [outputs, inputs] and the files of its statistics.
    """

    path: Path
    model: str
    key: str
    tokens: int
    guided: int
    tokenizer: str | None
    tensors: Mapping[str, Mapping[str, Any]]

    @classmethod
    def open(cls, path: str | PathLike[str]) -> Calibration:
        """The calibration in a directory.

        Raises:
            MissingFileError: there is none.
            FileFormatError: it is damaged, unfinished or of another version.
        """
        directory = require_directory(as_path(path, "calibration"))
        file = directory / MANIFEST
        with storage_errors(file):
            if not file.exists():
                raise MissingFileError(f"{directory}: holds no {MANIFEST}, so no calibration")
        facts = read_json(file)
        if facts.get("pocketlm_calibration") != VERSION:
            raise FileFormatError(
                f"{file}: is of version {facts.get('pocketlm_calibration')!r:.60}, not {VERSION}"
            )
        try:
            found = cls(
                directory,
                str(facts["model"]),
                str(facts["key"]),
                _count(facts["tokens"], 1),
                _count(facts["guided"], 0),
                _optional_text(facts, "tokenizer"),
                dict(facts["tensors"]),
            )
            for entry in found.tensors.values():
                _names(file, entry["inputs"])
                rows, _ = (_count(size, 1) for size in entry["shape"])
                if found.guided and entry["inputs"]:
                    _check_groups(file, entry, rows)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise FileFormatError(f"{file}: damaged ({error!r:.200})") from error
        return found

    def check(self, model: LoadedModel) -> None:
        """Refuses the calibration of another model.

        Raises:
            ParameterError: it is that of other weights, another architecture or another vocabulary. Which
                vocabulary is not known of those made before it was noted.
            TokenizerError: the model's tokenizer is damaged.
            FileFormatError: a matrix of the model is missing, or is said to have another shape.
        """
        if self.model != identify(model):
            raise ParameterError(
                f"calibration: {self.path} was made from another model than {model.path}; calibrate anew"
            )
        for op in model.graph.ops:
            if isinstance(op, Linear | Embed):
                name = stored_name(model.store, op.weight)
                entry = self.tensors.get(name, {"shape": None, "inputs": []})
                if entry["shape"] != list(op.weight.shape):
                    raise FileFormatError(
                        f"{self.path / MANIFEST}: damaged (tensor {name!r:.200} has the shape "
                        f"{entry['shape']!r:.100}, in the model {list(op.weight.shape)})"
                    )
                if isinstance(op, Linear) and not entry["inputs"]:
                    raise FileFormatError(
                        f"{self.path / MANIFEST}: damaged (no statistics of tensor {name!r:.200})"
                    )
        own = vocabulary(model) if self.tokenizer is not None else None
        if own is not None and own != self.tokenizer:
            raise ParameterError(
                f"calibration: {self.path} was made with another vocabulary than that of "
                f"{model.tokenizer_path}; calibrate anew"
            )

    def multiplies(self, tensor: str) -> bool:
        """Whether the tensor is one that something is multiplied with, so that it has a second moment."""
        return bool(self._entry(tensor)["inputs"])

    def second_moment(self, tensor: str) -> NDArray[np.float32]:
        """H = XᵀX / n of the inputs X [tokens, inputs] of a tensor, float32 [inputs, inputs], symmetric.

        Of a tensor that several operations read it is the sum over them. An embedding that is the head too
        has that of the head's inputs.

        Raises:
            ParameterError: the tensor is not part of this calibration, or is only looked up.
            FileFormatError, MissingFileError: a file is damaged or missing; names it.
        """
        inputs = self._entry(tensor)["inputs"]
        if not inputs:
            raise ParameterError(
                f"calibration: tensor {tensor!r:.200} is only looked up, it multiplies nothing"
            )
        width = int(self._entry(tensor)["shape"][1])
        total = self._load(inputs[0], (width, width))
        for name in inputs[1:]:
            total = total + self._load(name, (width, width))
        return total

    def groups(self, tensor: str) -> Iterator[Group]:
        """What the error of a tensor is measured by, group of rows by group; one moment at a time is read.

        Plain ones are one group with H = E[x xᵀ]. Guided ones (arXiv 2505.07004) are H_g = E[s x xᵀ], s being
        the mean over the group of the squared gradients of the loss with respect to the outputs, and weights
        of rows are proportional to the mean squares of their own gradients, with mean 1 in a group (a
        thousandth at least). Rows of an embedding that is the head too weigh the same, for they are looked
        up as well.

        Raises:
            As :meth:`second_moment`.
        """
        entry = self._entry(tensor)
        rows, width = map(int, entry["shape"])
        if not self.guided or not entry["inputs"]:
            moment = self.second_moment(tensor)
            yield Group(0, rows, moment, np.ones(rows, np.float32))
            return
        squares = np.zeros(rows)
        for name in entry["row_weights"]:
            squares += self._load(name, (rows,))
        for group in entry["groups"]:
            start, stop = group["rows"]
            moment = self._load(group["moments"][0], (width, width))
            for name in group["moments"][1:]:
                moment = moment + self._load(name, (width, width))
            yield Group(start, stop, moment, _row_weights(squares[start:stop]))

    def importance(self, tensor: str) -> NDArray[np.float32]:
        """What an error of each input's weight counts, [inputs]: E[x²], or of guided moments the mean of
        their diagonals over the rows.

        Raises:
            As :meth:`second_moment`.
        """
        rows = int(self._entry(tensor)["shape"][0])
        total = np.zeros(1)  # and as wide as what is read, whose size is checked before
        for group in self.groups(tensor):
            total = total + (group.stop - group.start) / rows * np.diagonal(group.moment)
        return total.astype(np.float32)

    def _entry(self, tensor: str) -> Mapping[str, Any]:
        if tensor not in self.tensors:
            raise ParameterError(f"calibration: {self.path} knows no tensor {tensor!r:.200}")
        return self.tensors[tensor]

    def _load(self, name: str, shape: Sequence[int]) -> NDArray[np.float32]:
        return load_array(self.path / name, shape)


def _row_weights(squares: NDArray[np.float64]) -> NDArray[np.float32]:
    mean = squares.mean()
    if not mean:
        return np.ones(len(squares), np.float32)
    return np.asarray(np.maximum(squares / mean, _LEAST), np.float32)


def identify(model: LoadedModel) -> str:
    """A hexadecimal number that says which model this is: its weights' bytes and its graph."""
    graph = hashlib.sha256(model.graph.to_json().encode()).hexdigest()[:16]
    return f"{model.store.fingerprint()}-{graph}"


def vocabulary(model: LoadedModel) -> str | None:
    """A hexadecimal number that says which tokens the model's tokenizer knows, with their ids; ``None`` where
    there is no tokenizer: windows of tokens need none."""
    with storage_errors(model.tokenizer_path):
        if not model.tokenizer_path.exists():
            return None
    tokens = sorted(model.read_tokenizer().inner.get_vocab().items())
    return hashlib.sha256(json.dumps(tokens).encode()).hexdigest()


def _count(value: object, least: int) -> int:
    """A number of things, as JSON has it: no shape that it is part of can be absurd."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= _MOST:
        raise ValueError(f"{value!r:.60} is no count")
    return value


def _optional_text(facts: Mapping[str, Any], name: str) -> str | None:
    value = facts.get(name)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{name} {value!r:.60}")
    return value


def _check_groups(file: Path, entry: Mapping[str, Any], rows: int) -> None:
    """Groups must follow one another and cover the rows; only the last may end inside a tile."""
    _names(file, entry["row_weights"])
    last = 0
    for group in entry["groups"]:
        start, stop = (_count(row, 0) for row in group["rows"])
        if start != last or stop <= start or start % _TILE or not group["moments"]:
            raise ValueError(f"groups of rows {entry['groups']}")
        _names(file, group["moments"])
        last = stop
    if last != rows:
        raise ValueError(f"groups of {last} rows, not {rows}")


def _names(file: Path, names: object) -> None:
    if not isinstance(names, list) or not all(
        isinstance(name, str) and Path(name).name == name and name for name in names
    ):
        raise FileFormatError(f"{file}: damaged (a list of file names is {names!r:.100})")
