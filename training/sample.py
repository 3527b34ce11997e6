"""Write text with a model in training. Slow (no cache): pocketlm's engine is for the rest."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer

from pocketlm.errors import PocketlmError
from pocketlm.interpret import jax as interpret
from training import environment
from training.state import load_model


def sample(
    model: Path, tokenizer: Tokenizer, prompt: str, count: int, temperature: float, top_p: float, seed: int
) -> str:
    """The prompt and what follows it."""
    graph, params = load_model(model)
    ids = [0, *tokenizer.encode(prompt, add_special_tokens=False).ids]
    buffer = np.zeros((1, min(len(ids) + count, graph.context_length)), np.int32)
    buffer[0, : len(ids)] = ids
    logits = jax.jit(
        lambda p, x, i: interpret.hidden(graph, p, x)[0, i] @ p[graph.ops[-1].weights()[0].name].T
    )
    rng = np.random.default_rng(seed)
    run = partial(logits, params)
    for i in range(len(ids), buffer.shape[1]):
        row = np.asarray(run(jnp.asarray(buffer), i - 1), np.float64) / temperature
        p = np.exp(row - row.max())
        order = np.argsort(-p)
        mass = np.cumsum(p[order]) / p.sum()
        kept = order[: int(np.searchsorted(mass, top_p)) + 1]
        buffer[0, i] = rng.choice(kept, p=p[kept] / p[kept].sum())
        if buffer[0, i] == 0:
            return tokenizer.decode(buffer[0, 1:i])
    return tokenizer.decode(buffer[0, 1:])


def main() -> None:
    """Runs from the command line."""
    environment.ensure("training.sample")
    parser = argparse.ArgumentParser(prog="python -m training.sample", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--model", type=Path, required=True, help="folder of a model, or a training checkpoint"
    )
    parser.add_argument("--tokenizer", type=Path, required=True, help="tokenizer.json")
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--top-p", type=float, default=0.95)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("prompts", nargs="*", default=["Once upon a time"])
    a = parser.parse_args()
    try:
        for prompt in a.prompts:
            text = sample(
                a.model,
                Tokenizer.from_file(str(a.tokenizer)),
                prompt,
                a.tokens,
                a.temperature,
                a.top_p,
                a.seed,
            )
            print(text, end="\n\n----\n\n", flush=True)
    except PocketlmError as error:
        sys.exit(f"training.sample: {error}")


if __name__ == "__main__":
    main()
