"""Train the story model: ``python -m training.train --data DIR --out RUN``; ``--resume`` goes on.

Learning rate: linear warm-up, then constant for as long as one likes; ``--decay-steps`` with ``--resume``
branches off a copy whose rate falls linearly to 0 (warm-up, stable, decay), so that a run can always be
continued from before the decay.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import signal
import sys
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from pocketlm.errors import ParameterError, PocketlmError
from pocketlm.families import build_graph
from pocketlm.graph import Graph
from training import environment, model, muon
from training.data import Stream, read_json, read_tokens
from training.evaluate import quick_loss
from training.muon import Tree
from training.state import Progress, State, load_progress, load_state, save_state, save_weights
from training.workers import Exchange, Link, launch

STATE = "state.safetensors"
LOG = "log.jsonl"


def rate_factor(progress: Progress, warmup: int) -> float:
    """The schedule: what both learning rates are multiplied by at the next step."""
    if progress.decay_start is not None:
        return max(0.0, 1 - (progress.step - progress.decay_start) / progress.decay_steps)
    return min(1.0, (progress.step - progress.warm_from + 1) / warmup) if warmup else 1.0


Functions = tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]


@cache
def make_functions(graph: Graph, hyper: muon.Hyper, rank: int, workers: int) -> Functions:
    """Compiled: the gradient, this worker's part of the directions, the update; see :func:`one_step`."""
    gradient = jax.jit(jax.value_and_grad(partial(model.loss, graph)))
    moves = jax.jit(partial(muon.moves, graph, hyper, muon.owners(graph, workers)[rank]), donate_argnums=0)
    return gradient, moves, jax.jit(partial(muon.update, hyper), donate_argnums=(0, 1))


def one_step(
    functions: Functions, exchange: Exchange, state: State, windows: np.ndarray, factor: float, stop: bool
) -> tuple[Tree, dict[str, Tree], float, bool]:
    """New weights and moments, the loss, and whether the first worker wants to stop. Uses up ``state``."""
    gradient, moves, update = functions
    loss, grads, stop = exchange.mean(*gradient(state.params, jnp.asarray(windows)), stop)
    if not math.isfinite(loss):
        raise ParameterError(f"the loss became {loss} at step {state.progress.step}: lower the learning rate")
    momentum, own = moves(state.moments["momentum"], grads)
    adam = {key: state.moments[key] for key in ("mean", "square")}
    params, adam = update(
        state.params, adam, exchange.gather(own), grads, jnp.int32(state.progress.step), jnp.float32(factor)
    )
    return params, {"momentum": momentum, **adam}, loss, stop


def start(arguments: argparse.Namespace) -> State:
    """The first state of a run: new weights, or a checkpoint."""
    if arguments.resume:
        state = load_state(arguments.resume)
        progress = state.progress
        if arguments.decay_steps and progress.decay_start is None:
            progress = dataclasses.replace(
                progress, decay_start=progress.step, decay_steps=arguments.decay_steps
            )
        return dataclasses.replace(state, progress=progress)
    vocab_size = read_json(arguments.data / "manifest.json")["tokenizer"]["vocab_size"]
    config = model.make_config(arguments.shape, vocab_size)
    graph = build_graph(config)
    hyper = muon.Hyper(arguments.matrix_rate, arguments.adam_rate, decay=arguments.decay)
    params = model.init_params(graph, arguments.seed)
    return State(params, muon.init_state(graph, params), Progress(config, hyper, arguments.seed))


def parameter_count(arguments: argparse.Namespace) -> int:
    """Weights of the model that :func:`start` would give."""
    if arguments.resume:
        graph = build_graph(load_progress(arguments.resume).config)
    else:
        vocab_size = read_json(arguments.data / "manifest.json")["tokenizer"]["vocab_size"]
        graph = build_graph(model.make_config(arguments.shape, vocab_size))
    return sum(math.prod(weight.shape) for weight in graph.weights().values())


class Log:
    """Lines of JSON. A resumed run drops the lines that are later than its checkpoint."""

    def __init__(self, path: Path, step: int) -> None:
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        kept = [line for line in lines if json.loads(line)["step"] <= step]
        path.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        self.path = path

    def write(self, **values: Any) -> None:
        """Appends one line."""
        rounded = {k: round(v, 5) if isinstance(v, float) else v for k, v in values.items()}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(rounded) + "\n")


def train(arguments: argparse.Namespace, link: Link = Link(0, 1)) -> State:  # noqa: B008 (immutable)
    """Runs until ``--steps``, ``--minutes``, the end of the decay, or a signal, and saves the last state.

    Every worker runs this; the first one evaluates, logs and saves while the others wait for it.
    """
    state = start(arguments)
    progress, params, moments = state.progress, state.params, state.moments
    graph = build_graph(progress.config)
    if arguments.context > graph.context_length:
        raise ParameterError(f"--context {arguments.context}: the model is made for {graph.context_length}")
    batch = arguments.batch * link.workers
    stream = Stream(
        read_tokens(arguments.data / "train.bin", graph.vocab_size), batch, arguments.context, progress.seed
    )
    functions = make_functions(graph, progress.hyper, link.rank, link.workers)
    exchange = Exchange(link, params, [name for share in muon.owners(graph, link.workers) for name in share])
    first = link.rank == 0
    stopping: list[int] = []
    previous = [
        (s, signal.signal(s, lambda number, _: stopping.append(number)))
        for s in (signal.SIGTERM, signal.SIGINT)
    ]
    report = Report(arguments, progress, graph) if first else None
    last = progress.decay_start + progress.decay_steps if progress.decay_start is not None else math.inf
    last = min(last, arguments.steps or math.inf)
    stop = progress.step >= last
    while not stop:
        while first and arguments.pause_file and arguments.pause_file.exists() and not stopping:
            time.sleep(1)
        t0 = time.monotonic()
        windows, position = stream.take(progress.position)
        windows = windows[link.rank * arguments.batch : (link.rank + 1) * arguments.batch]
        wanted = bool(stopping) or (report is not None and report.minutes() >= arguments.minutes)
        factor = rate_factor(progress, arguments.warmup)
        params, moments, loss, stop = one_step(
            functions, exchange, State(params, moments, progress), windows, factor, wanted
        )
        progress = dataclasses.replace(
            progress,
            step=progress.step + 1,
            tokens=progress.tokens + batch * arguments.context,
            seconds=progress.seconds + time.monotonic() - t0,
            position=position,
        )
        stop = stop or progress.step >= last
        if report:
            report.after_step(State(params, moments, progress), loss, factor, stop)
    for number, handler in previous:
        signal.signal(number, handler)
    exchange.close()
    state = State(params, moments, progress)
    if first:
        save_state(arguments.out / STATE, state)
    return state


class Report:
    """What the first worker does beside training: progress bar, log, evaluation, checkpoints."""

    def __init__(self, arguments: argparse.Namespace, progress: Progress, graph: Graph) -> None:
        self.arguments, self.graph = arguments, graph
        arguments.out.mkdir(parents=True, exist_ok=True)
        self.valid = read_tokens(arguments.data / "valid.bin", graph.vocab_size)
        self.log = Log(arguments.out / LOG, progress.step)
        self.began = self.saved = self.logged = time.monotonic()
        self.tokens = progress.tokens
        self.losses: list[float] = []
        self.bar = tqdm(initial=progress.step, total=arguments.steps, unit="step", disable=arguments.quiet)

    def minutes(self) -> float:
        """Minutes since the start."""
        return (time.monotonic() - self.began) / 60

    def after_step(self, state: State, loss: float, factor: float, last: bool) -> None:
        """Logs, evaluates and saves when it is time for each."""
        arguments, progress = self.arguments, state.progress
        self.losses.append(loss)
        self.bar.update()
        evaluate = progress.step % arguments.eval_every == 0 or last
        if progress.step % arguments.log_every == 0 or evaluate:
            line = {
                "step": progress.step,
                "tokens": progress.tokens,
                "loss": float(np.mean(self.losses)),
                "rate": factor,
                "context": arguments.context,
                "seconds": progress.seconds,
                "tokens_per_second": (progress.tokens - self.tokens) / (time.monotonic() - self.logged),
            }
            if evaluate:
                line["valid"] = quick_loss(self.graph, state.params, self.valid)
            self.log.write(**line)
            self.bar.set_postfix(loss=f"{line['loss']:.3f}", valid=f"{line.get('valid', math.nan):.3f}")
            self.losses, self.logged, self.tokens = [], time.monotonic(), progress.tokens
        if arguments.snapshot_every and progress.step % arguments.snapshot_every == 0:
            save_weights(arguments.out / f"weights-{progress.step:06}.safetensors", state.params)
        if time.monotonic() - self.saved > 60 * arguments.save_minutes:
            save_state(arguments.out / STATE, state)
            self.saved = time.monotonic()
        if last:
            self.bar.close()


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m training.train", description="Train the story model.")
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder that training.prepare wrote")
    add("--out", type=Path, required=True, help="folder for the log and the checkpoints")
    add("--resume", type=Path, help="a checkpoint (state.safetensors) to go on from")
    add(
        "--shape",
        choices=sorted(model.SHAPES),
        default="w256x8",
        help="size of the model (default %(default)s)",
    )
    add(
        "--workers", type=int, default=2, help="single-threaded processes; one per core (default %(default)s)"
    )
    add("--batch", type=int, default=16, help="sequences per step of each worker (default %(default)s)")
    add("--context", type=int, default=256, help="tokens per sequence (default %(default)s)")
    add("--steps", type=int, help="stop at this step")
    add("--minutes", type=float, default=math.inf, help="stop after this time")
    add("--warmup", type=int, default=50, help="steps of linear warm-up (default %(default)s)")
    add(
        "--decay-steps",
        type=int,
        default=0,
        help="with --resume: let the learning rate fall to 0 over this many steps",
    )
    add("--matrix-rate", type=float, default=0.025, help="Muon's learning rate (default %(default)s)")
    add("--adam-rate", type=float, default=4e-3, help="Adam's learning rate (default %(default)s)")
    add("--decay", type=float, default=0.1, help="weight decay of matrices (default %(default)s)")
    add("--seed", type=int, default=0)
    add(
        "--eval-every",
        type=int,
        default=100,
        help="steps between losses on held-out text (default %(default)s)",
    )
    add("--log-every", type=int, default=10)
    add("--save-minutes", type=float, default=3, help="minutes between checkpoints (default %(default)s)")
    add("--snapshot-every", type=int, default=0, help="steps between copies of the weights, for averaging")
    add("--pause-file", type=Path, help="sleep while this file exists")
    add("--quiet", action="store_true", help="no progress bar")
    arguments = parser.parse_args(argv)
    for name in ("workers", "batch", "context", "eval_every", "log_every"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    if arguments.decay_steps and not arguments.resume:
        parser.error("--decay-steps needs --resume")
    return arguments


def main() -> None:
    """Runs from the command line."""
    environment.ensure("training.train")
    try:
        arguments = parse()
        launch(train, arguments, parameter_count(arguments))
    except PocketlmError as error:
        sys.exit(f"training.train: {error}")


if __name__ == "__main__":
    main()
