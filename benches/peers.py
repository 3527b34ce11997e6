"""Runs pocketlm beside other runtimes on the same weights, in alternation, and prints ratios.

    python benches/peers.py --shape llama-3.2-1b pocketlm:4 llama_cpp:Q4_0

Every measurement is a process of its own. Between them the machine's read bandwidth is probed, and the share
of CPU that other processes took is printed: on a shared machine only neighbouring runs can be compared.
Before anything is timed, every variant's logits are compared with those of the oracle on the checkpoint's own
weights.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benches import environment, machine, report
from benches.adapters import adapter, names
from benches.checkpoint import Checkpoint
from benches.shapes import CONTEXT_KEYS, SHAPES

ROOT = Path(__file__).resolve().parents[1]
CHECK_IDS = [7, 300, 41, 599, 12, 88, 256, 400]
EXACT_TOLERANCE = 0.02  # of the largest logit: 16-bit weights with 16-bit activations


class Variant:
    """A runtime with one form of the weights, such as ``llama_cpp:Q4_0``."""

    def __init__(self, spec: str, args: argparse.Namespace) -> None:
        self.spec = spec
        self.name, _, self.form = spec.partition(":")
        self.peer = adapter(self.name)
        if self.form not in self.peer.variants:
            raise SystemExit(f"{spec}: {self.name} has the variants {', '.join(self.peer.variants)}")
        self.args = args
        self.title = f"{self.peer.title} {self.form}"
        self.model = self.version = ""
        self.runs: list[dict[str, Any]] = []

    def prepare(self, checkpoint: Path) -> None:
        """Installs the runtime and converts the checkpoint, where that is not yet done."""
        self.python = environment.python(self.peer, self.name, self.args.out / "envs")
        self.checkpoint = checkpoint
        target = self.args.out / "converted" / checkpoint.name / self.name
        done = self.task("convert", variant=self.form, target=str(target), checkpoint=str(checkpoint))
        self.model, self.version = done["model"], done["version"]

    def check(self, expected: NDArray[np.float32]) -> dict[str, float]:
        """Compares the logits of a short prompt with the oracle's.

        Raises:
            SystemExit: they are not those of the same model.
        """
        found = np.array(self.task("logits", ids=CHECK_IDS, context=256)["logits"])[: len(expected)]
        cosine = float(found @ expected / np.linalg.norm(found) / np.linalg.norm(expected))
        error = float(np.abs(found - expected).max() / np.abs(expected).max())
        exact = self.form in self.peer.exact
        if not cosine >= self.peer.variants[self.form] or (exact and not error <= EXACT_TOLERANCE):
            raise SystemExit(f"{self.title}: wrong logits (cosine {cosine:.4f}, largest error {error:.3f})")
        return {"cosine": cosine, "largest_error": error}

    def measure(self, seed: int) -> dict[str, Any]:
        """One run with its probes."""
        args, threads = self.args, self.args.threads
        before = machine.read_bandwidth(threads)
        clock, own = machine.Clock.now(), os.times()
        figures = self.task(
            "measure",
            seed=seed,
            prompts=args.prompt,
            after=args.after,
            generate=args.generate,
            context=max([*args.prompt, *args.after]) + args.generate + 64,
        )
        used = os.times()
        spent = used.children_user + used.children_system - own.children_user - own.children_system
        others = clock.others(spent)
        after = machine.read_bandwidth(threads)
        return {"figures": figures, "bandwidth": [before, after], "others_cpu": others}

    def task(self, do: str, **fields: Any) -> dict[str, Any]:
        """Runs the worker in the runtime's environment."""
        common = {"do": do, "peer": self.name, "model": self.model, "threads": self.args.threads}
        if do == "measure":
            common["vocab"] = Checkpoint(self.checkpoint).config["vocab_size"]
        with tempfile.TemporaryDirectory() as folder:
            file, out = Path(folder) / "task.json", Path(folder) / "result.json"
            file.write_text(json.dumps(common | fields | {"out": str(out)}))
            variables = os.environ | {"OMP_NUM_THREADS": str(self.args.threads)}
            done = subprocess.run(
                [str(self.python), "-m", "benches.adapters.worker", str(file)],
                cwd=ROOT,
                env=variables,
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode or not out.exists():
                raise SystemExit(f"{self.title}: {do} failed ({done.returncode})\n{done.stderr[-3000:]}")
            result: dict[str, Any] = json.loads(out.read_text())
            return result


def make_checkpoint(args: argparse.Namespace) -> Path:
    """The synthetic checkpoint, made when missing."""
    needed = max([*args.prompt, *args.after]) + args.generate + 64
    config = SHAPES[args.shape]
    published = next(config[key] for key in CONTEXT_KEYS if key in config)
    context = max(published, -(-needed // 1024) * 1024)
    path: Path = args.out / "models" / f"{args.shape}-{args.vocab or config['vocab_size']}-{context}"
    command = [sys.executable, str(ROOT / "benches" / "synthetic.py"), args.shape, str(path)]
    command += ["--context", str(context), *(["--vocab", str(args.vocab)] if args.vocab else [])]
    subprocess.run(command, check=True)
    return path


def oracle(checkpoint: Path) -> NDArray[np.float32]:
    """The logits after ``CHECK_IDS`` by the reference interpreter, in float32, kept in a file."""
    kept = checkpoint / "oracle.npy"
    if not kept.exists():
        from pocketlm.families import build_graph
        from pocketlm.interpret.reference import Reference

        model = Checkpoint(checkpoint)
        found = Reference(build_graph(model.config), model, np.float32).logits(CHECK_IDS)[-1]  # type: ignore[arg-type]
        np.save(kept, found)
    values: NDArray[np.float32] = np.load(kept)
    return values


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "variants", nargs="*", default=["pocketlm:4", "llama_cpp:Q4_0"], metavar="RUNTIME:FORM",
        help=f"default: pocketlm:4 llama_cpp:Q4_0; runtimes: {', '.join(names())}",
    )  # fmt: skip
    parser.add_argument("--shape", choices=list(SHAPES), default="llama-3.2-1b")
    parser.add_argument("--vocab", type=int, help="vocabulary size, if not the shape's")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--repeats", type=int, default=5, help="runs of each variant (default 5); 0 only compares logits"
    )
    parser.add_argument(
        "--prompt", type=int, nargs="+", default=[512, 2048], help="prompt lengths (512 2048)"
    )
    parser.add_argument(
        "--after", type=int, nargs="*", default=[2048], help="decode after such prompts (2048)"
    )
    parser.add_argument("--generate", type=int, default=64, help="tokens to decode (64)")
    parser.add_argument("--no-check", action="store_true", help="do not compare logits first")
    parser.add_argument("--out", type=Path, default=ROOT / "benches" / "out")
    args = parser.parse_args()
    args.out = args.out.resolve()
    if args.repeats < 0 or min(args.threads, *args.prompt, *args.after) < 1 or args.generate < 2:
        parser.error("numbers must be positive, and --generate at least 2")
    return args


def main() -> None:
    """Prepares, checks, measures in alternation, reports."""
    args = parse()
    checkpoint = make_checkpoint(args)
    variants = [Variant(spec, args) for spec in args.variants]
    checks = {}
    for variant in variants:
        variant.prepare(checkpoint)
        if not args.no_check:
            checks[variant.title] = variant.check(oracle(checkpoint))
            print(f"{variant.title}: logits agree, cosine {checks[variant.title]['cosine']:.4f}", flush=True)
    for i in range(args.repeats):
        # Forth and back, so that a drift of the machine meets everyone alike.
        for variant in variants if i % 2 == 0 else variants[::-1]:
            variant.runs.append(run := variant.measure(seed=i))
            speed, (low, high) = run["figures"]["decode"], sorted(run["bandwidth"])
            print(
                f"round {i + 1}: {variant.title:28} decode {speed:8.1f} tok/s, "
                f"bandwidth {low / 1e9:.1f} to {high / 1e9:.1f} GB/s, others' CPU {run['others_cpu']:.0%}",
                flush=True,
            )
    if args.repeats:
        publish(args, checkpoint, variants, checks)


def publish(
    args: argparse.Namespace, checkpoint: Path, variants: list[Variant], checks: dict[str, dict[str, float]]
) -> None:
    """Writes the JSON and the picture, prints the tables."""
    results = {variant.title: variant.runs for variant in variants}
    stem = f"peers-{checkpoint.name}"
    kept = {
        "shape": args.shape, "arguments": vars(args) | {"out": ""}, "machine": machine.describe(),
        "date": time.strftime("%Y-%m-%d"), "checks": checks, "results": results,
        "versions": {variant.title: variant.version for variant in variants},
    }  # fmt: skip
    (args.out / f"{stem}.json").write_text(json.dumps(kept, indent=1, default=str) + "\n")
    print("\n" + report.text(results, baseline="pocketlm"))
    report.picture(results, f"{args.shape}, {args.threads} threads", args.out / f"{stem}.png")
    print(f"\n{args.out}: {stem}.json, {stem}.png")


if __name__ == "__main__":
    main()
