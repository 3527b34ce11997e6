"""A runtime with one form of the weights, such as ``llama_cpp:Q4_0``: converted, checked, measured."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benches import environment, machine
from benches.adapters import adapter
from benches.checkpoint import Checkpoint
from benches.environment import CannotRunError
from pocketlm.clock import Clock

ROOT = Path(__file__).resolve().parents[1]
CHECK_IDS = [7, 300, 41, 599, 12, 88, 256, 400]
EXACT_TOLERANCE = 0.02  # of the largest logit: 16-bit weights with 16-bit activations
TOP = 0.02  # a greedy token of compressed weights must be among this share of the exact best
READING = ("bytes_per_token", "decode_seconds", "read_seconds")  # beside the figures, for what is left
AGREEING = 0.7  # of the prompts


class Variant:
    """One line of the tables. Every task is a process of its own, in the runtime's environment."""

    def __init__(self, spec: str, args: Namespace) -> None:
        self.spec = spec
        self.name, _, self.form = spec.partition(":")
        self.peer = adapter(self.name)
        if self.form not in self.peer.forms:
            raise SystemExit(f"{spec}: {self.name} has the forms {', '.join(self.peer.forms)}")
        self.args = args
        self.title = f"{self.peer.title} {self.form}"
        self.model = self.version = ""
        self._laid = False  # in the page cache

    def prepare(self, checkpoint: Path) -> None:
        """Installs the runtime and converts the checkpoint, where that is not yet done.

        Raises:
            CannotRunError: one of the two cannot be done here.
        """
        self.checkpoint = checkpoint
        family = Checkpoint(checkpoint).config["model_type"]
        if family not in self.peer.families:
            raise CannotRunError(f"{self.name} has no {family} models here")
        envs = self.args.out / "envs"
        home = self.peer.runs_in or self.name
        self.python = environment.python(adapter(home), home, envs)
        self.version = self.task("version")["version"]
        target = self.args.out / "converted" / checkpoint.name / (self.peer.forms_of or self.name)
        fields = {"variant": self.form, "target": str(target), "checkpoint": str(checkpoint)}
        other = self.peer.converts_in
        program = environment.python(adapter(other), other, envs) if other else self.python
        self.model = self.task("convert", program, **fields)["model"]

    def check(self, expected: NDArray[np.float32]) -> dict[str, float]:
        """Compares what the model says with the oracle's logits [position, vocabulary] of ``CHECK_IDS``.

        Raises:
            CannotRunError: this is not the same model.
        """
        if not self.peer.has_logits:
            return self._check_tokens(expected)
        found = np.array(self.task("logits", ids=CHECK_IDS, context=256)["logits"])[: expected.shape[1]]
        last = expected[-1]
        cosine = float(found @ last / np.linalg.norm(found) / np.linalg.norm(last))
        error = float(np.abs(found - last).max() / np.abs(last).max())
        exact, least = self.form in self.peer.exact, self.peer.forms[self.form]
        if not cosine >= least or (exact and not error <= EXACT_TOLERANCE):
            limit = f", limit {EXACT_TOLERANCE}" if exact else ""
            raise CannotRunError(
                f"wrong logits (cosine {cosine:.4f}, limit {least}; largest error {error:.3f}{limit})"
            )
        return {"cosine": cosine, "largest_error": error}

    def _check_tokens(self, expected: NDArray[np.float32]) -> dict[str, float]:
        """Every beginning of ``CHECK_IDS`` is a prompt, whose greedy token must be among the exact best."""
        prompts = [CHECK_IDS[: i + 1] for i in range(len(CHECK_IDS))]
        tokens = self.task("tokens", prompts=prompts, context=256)["tokens"]
        better = [(row > row[token]).mean() for row, token in zip(expected, tokens, strict=True)]
        agreeing = float(np.mean(np.array(better) <= TOP))
        if agreeing < AGREEING:
            raise CannotRunError(f"wrong tokens (only {agreeing:.0%} among the best {TOP:.0%})")
        return {"greedy_among_best": agreeing}

    def measure(self, seed: int) -> dict[str, Any]:
        """One run with its probes.

        Raises:
            CannotRunError: it failed.
        """
        args, threads = self.args, self.args.threads
        if not self._laid:  # behind conversion and checks, which read it in their own ways
            machine.drop_files(Path(self.model))
            self._laid = True
        machine.read_files(Path(self.model))
        before = machine.read_bandwidth(threads)
        clock, own = Clock.now(), os.times()
        figures = self.task(
            "measure",
            seed=seed,
            vocab=Checkpoint(self.checkpoint).config["vocab_size"],
            prompts=args.prompt,
            after=args.after,
            batches=args.batch,
            only_load=args.only_load,
            generate=args.generate,
            context=max([*args.prompt, *args.after]) + args.generate + 64,
        )
        used = os.times()
        spent = used.children_user + used.children_system - own.children_user - own.children_system
        others = clock.others(spent)
        after = machine.read_bandwidth(threads)
        run = {"figures": figures, "bandwidth": [before, after], "others_cpu": others, "at": time.time()}
        reading = {key: figures.pop(key) for key in READING if key in figures}
        return run | ({"reading": reading} if reading else {})

    def task(self, do: str, program: Path | None = None, **fields: Any) -> dict[str, Any]:
        """Runs the worker in the runtime's environment, or in that of ``program``."""
        common = {"do": do, "peer": self.name, "model": self.model, "threads": self.args.threads}
        with tempfile.TemporaryDirectory() as folder:
            file, out = Path(folder) / "task.json", Path(folder) / "result.json"
            file.write_text(json.dumps(common | fields | {"out": str(out)}))
            variables = os.environ | {"OMP_NUM_THREADS": str(self.args.threads)}
            # Installed packages have their bytecode, so that no user waits for compilation at each start.
            variables.pop("PYTHONDONTWRITEBYTECODE", None)
            variables |= dict(self.peer.run_variables)
            command = [str(program or self.python), "-m", "benches.adapters.worker", str(file)]
            try:
                done = subprocess.run(
                    command, cwd=ROOT, env=variables, capture_output=True, text=True, errors="replace",
                    timeout=self.args.timeout, check=False,
                )  # fmt: skip
            except subprocess.TimeoutExpired:
                raise CannotRunError(f"{do} took more than {self.args.timeout} s") from None
            if done.returncode or not out.exists():
                log = self.args.out / f"failed-{self.name}-{self.form}-{do}.log"
                log.write_text(done.stdout + done.stderr)
                last = (done.stderr.strip().splitlines() or ["no message"])[-1][:300]
                raise CannotRunError(f"{do} failed ({done.returncode}): {last} (all of it in {log.name})")
            result: dict[str, Any] = json.loads(out.read_text())
            return result
