"""Average the weights of several checkpoints of one run, as OpenELM did with its last five."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import jax.numpy as jnp

from pocketlm.errors import ParameterError, PocketlmError, WeightError
from training import environment
from training.muon import Tree
from training.state import load_weights, save_weights


def average(paths: list[Path]) -> Tree:
    """The mean of each tensor, in float32.

    Raises:
        ParameterError: no path is given.
        WeightError: the files do not hold the same tensors.
    """
    if not paths:
        raise ParameterError("nothing to average")
    total = load_weights(paths[0])
    for path in paths[1:]:
        other = load_weights(path)
        if {k: v.shape for k, v in other.items()} != {k: v.shape for k, v in total.items()}:
            raise WeightError(f"{path}: its tensors are not those of {paths[0]}")
        total = {name: value + other[name] for name, value in total.items()}
    return {name: value / jnp.float32(len(paths)) for name, value in total.items()}


def main() -> None:
    """Runs from the command line."""
    environment.ensure("training.average")
    parser = argparse.ArgumentParser(
        prog="python -m training.average", description="Average the weights of checkpoints."
    )
    parser.add_argument("files", type=Path, nargs="+", help="files of weights, or checkpoints")
    parser.add_argument("--out", type=Path, required=True, help="safetensors file to write (float32)")
    arguments = parser.parse_args()
    try:
        save_weights(arguments.out, average(arguments.files))
    except PocketlmError as error:
        sys.exit(f"training.average: {error}")


if __name__ == "__main__":
    main()
