"""The share of a decode step that normalisation takes, one operation at a time or fused.

    python benches/norm.py naive
    python benches/norm.py fused

An article on OpenELM 1.1B found its 113 RMS normalisations to be the bottleneck when each is a chain of
elementary operations. This measures a decode step of that shape at 4 bits, and the 113 alone (on one thread,
data in cache), as elementary passes and as the kernels that the engine calls. What a step with elementary
passes takes is computed: no engine runs them.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benches import peers
from benches.variant import ROOT, Variant


def normalisations(form: str) -> tuple[int, float]:
    """How many a step has, and their seconds together."""
    command = [
        "cargo",
        "run",
        "--release",
        "--quiet",
        "-p",
        "pocketlm-kernels",
        "--example",
        "norm_bench",
        form,
    ]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    count, microseconds = done.stdout.split()
    return int(count), float(microseconds) / 1e6


def text(form: str, step: float, fused: float, count: int, seconds: float) -> str:
    """What was measured, in seconds, and the share that follows: of a step in which ``seconds`` take the
    place of the ``fused`` normalisations that the engine's step contains."""
    whole = step - fused + seconds
    lines = [
        f"measured: a decode step of the engine, {step * 1e3:.2f} ms; its {count} normalisations alone, "
        f"on one thread with data in cache, {fused * 1e6:.0f} us fused"
        + (f", {seconds * 1e6:.0f} us {form}" if form != "fused" else "")
    ]
    if form != "fused":
        lines.append(f"computed: a step with them {form}, {whole * 1e3:.2f} ms, were nothing else changed")
    return "\n".join([*lines, f"share of the {form} normalisations: {seconds / whole:.1%}"])


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("form", choices=["naive", "fused"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=ROOT / "benches" / "out")
    args = parser.parse_args()
    defaults = {
        "shape": "openelm-1.1b",
        "vocab": None,
        "prompt": [16],
        "after": [],
        "batch": [],
        "generate": 64,
    }
    vars(args).update(defaults | {"only_load": False, "timeout": 3600})
    args.out = args.out.resolve()
    checkpoint = peers.make_checkpoint(args)
    variant = Variant("pocketlm:4", args)
    variant.prepare(checkpoint)
    run = variant.measure(seed=0)
    step = 1 / run["figures"]["decode"]
    count, fused = normalisations("fused")
    seconds = fused if args.form == "fused" else normalisations(args.form)[1]
    print(text(args.form, step, fused, count, seconds))
    print(f"others' CPU while the step was measured: {run['others_cpu']:.0%}")


if __name__ == "__main__":
    main()
