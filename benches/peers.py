"""Runs pocketlm beside other runtimes on the same weights, in alternation, and prints ratios.

    python benches/peers.py --shape llama-3.2-1b pocketlm:4 llama_cpp:Q4_0

Every measurement is a process of its own. Between them the machine's read bandwidth is probed, and the share
of CPU that other processes took is printed: on a shared machine only neighbouring runs can be compared.
Before anything is timed, every variant's output is compared with that of the oracle on the checkpoint's own
weights. Finished runs are kept and not run again; a runtime that cannot run here is listed with the reason.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benches import machine, report
from benches.adapters import names
from benches.checkpoint import Checkpoint
from benches.environment import CannotRunError
from benches.results import Results, Run
from benches.shapes import CONTEXT_KEYS, SHAPES
from benches.variant import CHECK_IDS, ROOT, Variant

TABLE = """
    pocketlm:4 pocketlm:3.5 pocketlm:2 llama_cpp:Q4_0 llama_cpp:Q4_K_M llama_cpp:Q3_K_M llama_cpp:Q2_K
    llama_cpp:Q8_0 openvino_genai:int4 openvino_genai:int8 onnxruntime_genai:int4 ctranslate2:int8
    torchao:int4 mistralrs:Q4K mlx_lm:4
"""
SETTINGS = ("threads", "prompt", "after", "batch", "generate", "only_load")  # runs of others are not reused


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
    """The logits [position, vocabulary] of ``CHECK_IDS`` by the reference interpreter, in float32, kept in a
    file."""
    kept = checkpoint / "oracle-logits.npy"
    if not kept.exists():
        from pocketlm.families import build_graph
        from pocketlm.interpret.reference import Reference

        model = Checkpoint(checkpoint)
        found = Reference(build_graph(model.config), model, np.float32).logits(CHECK_IDS)  # type: ignore[arg-type]
        np.save(kept, found)
    values: NDArray[np.float32] = np.load(kept)
    return values


def command_line() -> argparse.ArgumentParser:
    """Its options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "variants", nargs="*", default=["pocketlm:4", "llama_cpp:Q4_0"], metavar="RUNTIME:FORM",
        help=f"default: pocketlm:4 llama_cpp:Q4_0; 'all' for a line of each; runtimes: {', '.join(names())}",
    )  # fmt: skip
    parser.add_argument("--shape", choices=list(SHAPES), default="llama-3.2-1b")
    parser.add_argument("--vocab", type=int, help="vocabulary size, if not the shape's")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--repeats", type=int, default=5, help="rounds (default 5); 0 only converts and compares outputs"
    )
    parser.add_argument(
        "--prompt", type=int, nargs="+", default=[512, 2048], help="prompt lengths (512 2048)"
    )
    parser.add_argument(
        "--after", type=int, nargs="*", default=[2048], help="decode after such prompts (2048)"
    )
    parser.add_argument(
        "--batch", type=int, nargs="*", default=[], help="decode so many texts at once, where a runtime can"
    )
    parser.add_argument("--generate", type=int, default=64, help="tokens to decode (64)")
    parser.add_argument(
        "--only-load", action="store_true", help="only load and give the first token of a prompt of 16"
    )
    parser.add_argument("--again", action="store_true", help="do not use runs that were kept")
    parser.add_argument("--kept", action="store_true", help="measure nothing: report the runs that were kept")
    parser.add_argument("--no-check", action="store_true", help="do not compare outputs first")
    parser.add_argument("--timeout", type=int, default=3600, help="seconds for one task (3600)")
    parser.add_argument("--out", type=Path, default=ROOT / "benches" / "out")
    return parser


def parse(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line, or what is given in its place."""
    parser = command_line()
    args = parser.parse_args(given)
    args.out = args.out.resolve()
    args.variants = [v for w in args.variants for v in (TABLE.split() if w == "all" else [w])]
    counts = (args.threads, args.timeout, *args.prompt, *args.after, *args.batch)
    if args.repeats < 0 or min(counts) < 1 or args.generate < 2:
        parser.error("numbers must be positive, and --generate at least 2")
    return args


def main() -> None:
    """Compares what the command line asks for."""
    compare(parse())


def compare(args: argparse.Namespace) -> tuple[dict[str, list[Run]], dict[str, str]]:
    """Prepares, checks, measures in alternation, reports.

    Returns the runs of each variant, and why the others have none, by ``RUNTIME:FORM``.
    """
    variants = [Variant(spec, args) for spec in args.variants]  # complains of unknown ones before any work
    checkpoint = make_checkpoint(args)
    settings = {key: getattr(args, key) for key in SETTINGS}
    kept = Results(args.out / f"runs-{checkpoint.name}.jsonl", settings, args.again)
    absent: dict[str, str] = {}
    checks: dict[str, Any] = {}
    for variant in variants:
        try:
            variant.prepare(checkpoint)
            if not args.no_check:
                checks[variant.title] = check(variant, checkpoint, kept)
        except CannotRunError as error:
            give_up(variant, error, absent, kept, "refused")
    for i in range(args.repeats):
        # Forth and back, so that a drift of the machine meets everyone alike.
        for variant in variants if i % 2 == 0 else variants[::-1]:
            if variant.title in absent or args.kept or kept.find("run", variant.spec, variant.version, i):
                continue
            try:
                run = kept.add("run", variant.spec, variant.version, variant.measure(seed=i), i)
            except CannotRunError as error:
                give_up(variant, error, absent, kept, "failed")
                continue
            figures, (low, high) = run["figures"], sorted(run["bandwidth"])
            key = "decode" if "decode" in figures else "load_to_first_token_seconds"
            print(
                f"round {i + 1}: {variant.title:28} {report.heading(key)}: {figures[key]:8.1f}, "
                f"bandwidth {low / 1e9:.1f} to {high / 1e9:.1f} GB/s, others' CPU {run['others_cpu']:.0%}",
                flush=True,
            )
    reasons = kept.reasons()
    for variant in variants:
        if args.repeats and variant.title not in absent and not kept.runs(variant.spec, variant.version):
            absent[variant.title] = reasons.get(variant.spec, "no run was kept")
    asked = [variant.spec for variant in variants]
    absent |= {Variant(spec, args).title: why for spec, why in reasons.items() if spec not in asked}
    present = [variant for variant in variants if variant.title not in absent]
    if args.repeats and present:
        publish(args, checkpoint, present, kept, {"checks": checks, "not_run": absent})
    for title, reason in absent.items():
        print(f"{title}: not run: {reason}")
    runs = {variant.spec: kept.runs(variant.spec, variant.version)[: args.repeats] for variant in present}
    return runs, {variant.spec: absent[variant.title] for variant in variants if variant.title in absent}


def check(variant: Variant, checkpoint: Path, kept: Results) -> dict[str, float]:
    """Compares a variant's output with the oracle's, unless that was done."""
    done = kept.find("check", variant.spec, variant.version)
    if done is None:
        done = kept.add("check", variant.spec, variant.version, {"found": variant.check(oracle(checkpoint))})
    elif variant.spec in kept.reasons():  # what refused it before has passed
        done = kept.add("check", variant.spec, variant.version, {"found": done["found"]})
    found: dict[str, float] = done["found"]
    said = ", ".join(f"{key.replace('_', ' ')} {value:.4f}" for key, value in found.items())
    print(f"{variant.title} ({variant.version}): output agrees, {said}", flush=True)
    return found


def give_up(
    variant: Variant, error: CannotRunError, absent: dict[str, str], kept: Results, kind: str
) -> None:
    """Notes why a variant takes no further part, for those who ask for the others alone too."""
    absent[variant.title] = str(error)
    kept.add(kind, variant.spec, variant.version, {"reason": str(error)})
    print(f"{variant.title}: not run: {error}", flush=True)


def held(variants: list[Variant]) -> str:
    """The instruction sets that ``POCKETLM_ISA`` holds pocketlm's variants to; nothing if it does not."""
    here = os.environ.get("POCKETLM_ISA", "")
    ours = [v.peer.run_variables.get("POCKETLM_ISA", here) for v in variants if v.name.startswith("pocketlm")]
    return "-".join(isa or "best" for isa in sorted(set(ours))) if any(ours) else ""


def stem(checkpoint: str, args: argparse.Namespace, isa: str) -> str:
    """The name of a comparison's files: all that is not the default is in it, so that none overwrites
    another's. Runs are kept by their settings, in one file for each checkpoint."""
    parts, defaults = [f"peers-{checkpoint}"], command_line()
    for key in SETTINGS:
        value = getattr(args, key)
        if value != defaults.get_default(key):
            numbers = value if isinstance(value, list) else [value]
            parts.append("load" if key == "only_load" else "-".join(map(str, [key, *numbers])))
    return "-".join([*parts, *(["held", isa] if isa else [])])


def publish(
    args: argparse.Namespace, checkpoint: Path, variants: list[Variant], kept: Results, more: dict[str, Any]
) -> None:
    """Writes the JSON and the picture, prints the tables."""
    results = {v.title: kept.runs(v.spec, v.version)[: args.repeats] for v in variants}
    isa = held(variants)
    name = stem(checkpoint.name, args, isa)
    values = {
        "shape": args.shape, "isa": isa, "arguments": vars(args) | {"out": ""}, "machine": machine.describe(),
        "date": time.strftime("%Y-%m-%d"), "results": results,
        "versions": {variant.title: variant.version for variant in variants},
    } | more  # fmt: skip
    (args.out / f"{name}.json").write_text(json.dumps(values, indent=1, default=str) + "\n")
    print("\n" + report.text(results, baseline="pocketlm"))
    print(f"\n{args.out / name}.json")
    try:
        report.picture(results, f"{args.shape}, {args.threads} threads", args.out / f"{name}.png")
        print(f"{args.out / name}.png")
    except ImportError:
        print("no picture: matplotlib is not installed")


if __name__ == "__main__":
    main()
