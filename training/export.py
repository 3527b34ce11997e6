"""Write a trained model as a Hugging Face folder in a 16-bit type, or a checkpoint in its compact form."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from pocketlm.errors import PocketlmError, StorageError
from training import environment
from training.muon import Tree
from training.state import load_state, load_weights, save_state, save_weights, write_atomic

GENERATION = {
    "bos_token_id": 0,
    "eos_token_id": 0,
    "do_sample": True,
    "temperature": 0.8,
    "top_p": 0.95,
    "repetition_penalty": 1.1,
    "max_new_tokens": 200,
}


def export(out: Path, config: dict[str, Any], params: Tree, tokenizer: Path, dtype: str) -> None:
    """Writes weights, configuration, generation settings and the tokenizer's two files.

    Raises:
        StorageError: a file cannot be written, or the tokenizer's cannot be read.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(tokenizer / name, out / name)
    except OSError as error:
        raise StorageError(f"{error.filename}: {error.strerror}") from error
    for name, values in (
        ("config.json", {**config, "torch_dtype": dtype}),
        ("generation_config.json", GENERATION),
    ):
        write_atomic(out / name, (json.dumps(values, indent=2) + "\n").encode())
    save_weights(out / "model.safetensors", params, dtype)


def main() -> None:
    """Runs from the command line."""
    environment.ensure("training.export")
    parser = argparse.ArgumentParser(prog="python -m training.export", description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, help="a run's state.safetensors")
    parser.add_argument(
        "--weights", type=Path, help="weights to use instead of the checkpoint's (training.average)"
    )
    parser.add_argument("--tokenizer", type=Path, help="folder of tokenizer.json and tokenizer_config.json")
    parser.add_argument("--dtype", choices=("float16", "bfloat16"), default="float16")
    parser.add_argument("--out", type=Path, help="folder of the model to write")
    parser.add_argument(
        "--compact", type=Path, help="write the checkpoint in 16 bits to this file, to resume from"
    )
    arguments = parser.parse_args()
    if bool(arguments.out) != bool(arguments.tokenizer):
        parser.error("--out and --tokenizer go together")
    try:
        state = load_state(arguments.checkpoint)
        if arguments.compact:
            save_state(arguments.compact, state, compact=True)
        if arguments.out:
            params = load_weights(arguments.weights) if arguments.weights else state.params
            export(arguments.out, state.progress.config, params, arguments.tokenizer, arguments.dtype)
    except PocketlmError as error:
        sys.exit(f"training.export: {error}")


if __name__ == "__main__":
    main()
