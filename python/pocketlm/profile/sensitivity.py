"""What each kind of each tensor costs in Kullback-Leibler divergence, where somebody has measured it."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from pocketlm.checks import shown
from pocketlm.errors import ParameterError
from pocketlm.loading.files import as_path, read_json
from pocketlm.palettize.recipe import KINDS

FILE = "sensitivity.json"
ESTIMATED = "estimated"  # beside the tensors: which kinds of which were interpolated; older files lack it

Sensitivities = dict[str, dict[str, float]]


def read_sensitivities(
    given: Mapping[str, Mapping[str, float]] | str | PathLike[str] | None,
    directory: Path | None,
    tensors: Collection[str],
) -> Sensitivities:
    """Sensitivities as ``{tensor: {kind: nats per token}}`` from a mapping, a JSON file, or, if nothing is
    given, from ``sensitivity.json`` in the model's directory where there is one. Entries of other tensors
    are an error, but for ``estimated``, which says what of it was not measured.

    Raises:
        ParameterError: a tensor or kind is unknown, or a value is not a number from 0 up; names it.
        MissingFileError, FileFormatError: the file cannot be read.
    """
    source = "sensitivities"
    values: Mapping[str, Any] = {}
    if isinstance(given, Mapping):
        values = given
    elif given is not None or (directory is not None and (directory / FILE).is_file()):
        path = as_path(given, "sensitivities") if given is not None else Path(directory or ".") / FILE
        source, values = str(path), read_json(path)
    found: Sensitivities = {}
    for tensor, kinds in values.items():
        if tensor == ESTIMATED and tensor not in tensors:
            continue
        if tensor not in tensors:
            raise ParameterError(f"{source}: {shown(tensor)} is not a projection or embedding of this model")
        if not isinstance(kinds, Mapping):
            raise ParameterError(f"{source}: {shown(tensor)} must be an object of kinds and numbers")
        for kind, value in kinds.items():
            if kind not in KINDS:
                raise ParameterError(
                    f"{source}: {shown(tensor)} has kind {shown(kind)}; kinds are {', '.join(KINDS)}"
                )
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not 0 <= value <= sys.float_info.max:
                raise ParameterError(
                    f"{source}: {shown(tensor)} {kind} must be a number from 0 up, not {shown(value)}"
                )
        found[tensor] = {kind: float(value) for kind, value in kinds.items()}
    return found
