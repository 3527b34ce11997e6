"""Bits per byte on held-out text, loss by position, and the plot of a run."""

from __future__ import annotations

import argparse
import json
import math
import sys
from functools import lru_cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pocketlm.errors import FileFormatError, MissingFileError, PocketlmError
from pocketlm.graph import Graph
from pocketlm.interpret import jax as interpret
from training import environment, model
from training.data import read_json, read_tokens
from training.state import load_model

BATCH_TOKENS = 8192


@lru_cache(maxsize=8)
def loss_function(graph: Graph) -> Any:
    """Compiled: (params, windows [batch, context + 1]) -> losses in nats [batch, context]."""

    @jax.jit
    def losses(params: Any, windows: jax.Array) -> jax.Array:
        h = interpret.hidden(graph, params, windows[:, :-1])
        table = params[graph.ops[-1].weights()[0].name]
        flat = model.token_losses(h.reshape(-1, h.shape[-1]), table, windows[:, 1:].reshape(-1))
        return flat.reshape(h.shape[:2])

    return losses


def window_losses(
    graph: Graph, params: Any, tokens: np.ndarray, starts: np.ndarray, context: int
) -> np.ndarray:
    """Losses [windows, context] of the tokens after each of the windows' tokens."""
    batch = max(1, BATCH_TOKENS // context)
    run = partial(loss_function(graph), params)
    parts = []
    for first in range(0, len(starts), batch):
        chosen = starts[first : first + batch]
        padded = np.concatenate([chosen, np.repeat(chosen[-1:], batch - len(chosen))])  # one compiled shape
        windows = tokens[padded[:, None] + np.arange(context + 1)].astype(np.int32)
        parts.append(np.asarray(run(jnp.asarray(windows)))[: len(chosen)])
    return np.concatenate(parts)


def quick_loss(
    graph: Graph, params: Any, tokens: np.ndarray, context: int = 256, windows: int = 128
) -> float:
    """Mean loss in nats per token over windows spread evenly over the text."""
    context = min(context, (len(tokens) - 1) // 2)
    starts = np.linspace(0, len(tokens) - 1 - context, min(windows, (len(tokens) - 1) // context)).astype(
        np.int64
    )
    return float(window_losses(graph, params, tokens, starts, context).mean(dtype=np.float64))


def total_loss(
    graph: Graph, params: Any, tokens: np.ndarray, context: int, stride: int
) -> tuple[float, np.ndarray]:
    """Nats of all tokens but the first, and the mean by position, in windows ``stride`` tokens apart.

    Each token is counted once, in the first window that holds it; all but the tokens of the first window have
    at least ``context - stride`` tokens before them.
    """
    count = len(tokens) - 1
    context = min(context, count)
    starts = [*range(0, count - context, stride), count - context]
    losses = window_losses(graph, params, tokens, np.array(starts), context)
    total, done = 0.0, 0
    for start, row in zip(starts, losses, strict=True):
        total += float(row[done - start :].sum(dtype=np.float64))
        done = start + context
    return total, losses.mean(0, dtype=np.float64)


def bits_per_byte(
    graph: Graph, params: Any, tokens: np.ndarray, size: int, context: int = 512
) -> dict[str, Any]:
    """Bits per byte of a text of ``size`` bytes by a sliding window with a stride of half the context."""
    nats, by_position = total_loss(graph, params, tokens, context, max(1, context // 2))
    edges = [0, *(2**k for k in range(4, 11) if 2**k < len(by_position)), len(by_position)]
    return {
        "tokens": len(tokens) - 1,
        "bytes": size,
        "context": context,
        "nll": nats,
        "perplexity": math.exp(nats / (len(tokens) - 1)),
        "bits_per_byte": nats / math.log(2) / size,
        "loss_by_position": {
            f"{a}-{b - 1}": round(float(by_position[a:b].mean()), 4) for a, b in pairwise(edges)
        },
    }


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a run's log."""
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except FileNotFoundError as error:
        raise MissingFileError(f"{path}: no such log") from error
    except ValueError as error:
        raise FileFormatError(f"{path}: {error}") from error


def plot(logs: list[Path], out: Path, bytes_per_token: float) -> None:
    """Draws training and held-out loss, in bits per byte, over tokens."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5))
    for number, path in enumerate(logs):
        lines = read_log(path)
        scale = 1 / (math.log(2) * bytes_per_token)
        valid = [line for line in lines if "valid" in line]
        colour = f"C{number}"
        axes.plot(
            [x["tokens"] / 1e6 for x in lines], [x["loss"] * scale for x in lines], colour, alpha=0.3, lw=0.7
        )
        axes.plot(
            [x["tokens"] / 1e6 for x in valid],
            [x["valid"] * scale for x in valid],
            colour,
            label=path.parent.name,
        )
    axes.set(xlabel="million tokens seen", ylabel="bits per byte (bold: held-out, faint: training)")
    axes.set_ylim(top=min(2.2, axes.get_ylim()[1]))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(out, dpi=120)


def main() -> None:
    """Evaluates weights from the command line, or plots logs."""
    environment.ensure("training.evaluate")
    parser = argparse.ArgumentParser(
        prog="python -m training.evaluate",
        description="Bits per byte of a model on held-out text; learning curves.",
    )
    parser.add_argument("--data", type=Path, required=True, help="folder that training.prepare wrote")
    parser.add_argument("--model", type=Path, help="folder of a model, or a training checkpoint")
    parser.add_argument("--context", type=int, default=512, help="tokens of the window (default %(default)s)")
    parser.add_argument("--plot", type=Path, help="write a picture of the logs to this file")
    parser.add_argument("--log", type=Path, nargs="+", default=[], help="logs to plot (log.jsonl)")
    arguments = parser.parse_args()
    try:
        manifest = read_json(arguments.data / "manifest.json")
        if arguments.plot:
            plot(arguments.log, arguments.plot, manifest["tokenizer"]["bytes_per_token_valid"])
        if arguments.model:
            graph, params = load_model(arguments.model)
            tokens = read_tokens(arguments.data / "valid.bin", graph.vocab_size)
            size = manifest["valid"]["text_bytes"]
            print(json.dumps(bits_per_byte(graph, params, tokens, size, arguments.context), indent=2))
    except PocketlmError as error:
        sys.exit(f"training.evaluate: {error}")


if __name__ == "__main__":
    main()
