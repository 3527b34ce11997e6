"""Compare shapes at equal compute: each is trained with the same number of operations, decay included.

Compute is counted, not timed, so the figures do not depend on what else the machine does.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

from pocketlm.errors import PocketlmError
from pocketlm.families import build_graph
from pocketlm.graph import Attention, Embed, Graph
from training import environment, model, train
from training.data import read_json, read_tokens
from training.evaluate import bits_per_byte
from training.workers import launch

DECAY = 0.3  # share of the steps over which the learning rate falls


def flops_per_token(graph: Graph, context: int) -> int:
    """Multiplications and additions of a forward and a backward pass, for one token."""
    weights = sum(op.width * op.weight.shape[1] for op in graph.linears())
    scores = sum(2 * op.heads * op.head_dim * context for op in graph.ops if isinstance(op, Attention))
    return 6 * (weights + scores)


def run(arguments: argparse.Namespace, shape: str) -> dict[str, Any]:
    """Trains one shape and evaluates it."""
    manifest = read_json(arguments.data / "manifest.json")
    graph = build_graph(model.make_config(shape, manifest["tokenizer"]["vocab_size"]))
    flops = flops_per_token(graph, arguments.context)
    per_step = arguments.workers * arguments.batch * arguments.context
    steps = max(10, round(arguments.teraflops * 1e12 / flops / per_step))
    out = arguments.out / shape
    common = ["--data", str(arguments.data), "--out", str(out), "--shape", shape]
    for name in ("workers", "batch", "context", "matrix_rate", "adam_rate"):
        common += [f"--{name.replace('_', '-')}", str(getattr(arguments, name))]
    decay = round(steps * DECAY)
    began = time.monotonic()
    for last, extra in (
        (steps - decay, ["--steps", str(steps - decay)]),
        (steps, ["--resume", str(out / train.STATE), "--decay-steps", str(decay)]),
    ):
        options = train.parse([*common, *extra])
        state = launch(train.train, options, train.parameter_count(options))
        if state.progress.step < last:  # a signal ended the training, and is meant for the study as well
            sys.exit(f"training.study: {shape} was interrupted at step {state.progress.step} of {steps}")
    valid = read_tokens(arguments.data / "valid.bin", graph.vocab_size)
    score = bits_per_byte(graph, state.params, valid, manifest["valid"]["text_bytes"], arguments.context)
    sizes = {name: math.prod(weight.shape) for name, weight in graph.weights().items()}
    embedding = next(op.weight.name for op in graph.ops if isinstance(op, Embed))
    return {
        "shape": shape,
        "parameters": sum(sizes.values()),
        "without_embedding": sum(sizes.values()) - sizes[embedding],
        "megaflops_per_token": round(flops / 1e6, 1),
        "tokens": state.progress.tokens,
        "bits_per_byte": round(score["bits_per_byte"], 4),
        "minutes": round((time.monotonic() - began) / 60, 1),
    }


def main() -> None:
    """Runs from the command line."""
    environment.ensure("training.study")
    parser = argparse.ArgumentParser(prog="python -m training.study", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder that training.prepare wrote")
    add("--out", type=Path, required=True, help="folder for the runs; study.jsonl in it gets the results")
    add("--shapes", nargs="+", choices=sorted(model.SHAPES), default=sorted({*model.SHAPES} - {"tiny"}))
    add("--teraflops", type=float, default=100, help="compute of each run in 1e12 operations")
    add("--workers", type=int, default=2)
    add("--batch", type=int, default=8)
    add("--context", type=int, default=256)
    add("--matrix-rate", type=float, default=0.02)
    add("--adam-rate", type=float, default=4e-3)
    arguments = parser.parse_args()
    try:
        for shape in arguments.shapes:
            line = json.dumps(run(arguments, shape))
            print(line, flush=True)
            with (arguments.out / "study.jsonl").open("a", encoding="utf-8") as file:
                file.write(line + "\n")
    except PocketlmError as error:
        sys.exit(f"training.study: {error}")


if __name__ == "__main__":
    main()
