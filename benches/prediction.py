"""How well ``pocketlm profile`` predicts: what-ifs of a model beside the models that their recipes make.

    python benches/prediction.py [SOURCE] [--threads N] [--rounds R]

SOURCE is a 16-bit checkpoint (the story model's by default). It is palettized to 4 bits, profiled, and each
what-if is predicted; then its recipe is applied and the outcome measured, in turn with the 4-bit model, so
that a drifting machine meets both. What counts is the ratio of two neighbours, beside the predicted ratio.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import pocketlm
from pocketlm.palettize import palettize
from pocketlm.profile import profile

SOURCE = Path(__file__).parent.parent / "models" / "pocketlm-stories"
WHAT_IFS: dict[str, dict[str, str]] = {
    "ffn at 2 bits": {"ffn.*": "p2"},
    "all at 3 bits": {"layers.*": "p3"},
    "all at 2 bits, head at 4": {"layers.*": "p2", "head": "p4"},
    "all at 8 bits": {"layers.*": "p8"},
    "attention at 8, down at 2": {"attn.*": "p8", "ffn.down": "p2"},
}


def compare(source: Path, threads: int | None, rounds: int) -> list[dict[str, Any]]:
    """One entry for each what-if: predicted and measured sizes, and speeds relative to the 4-bit model."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        first = Path(folder) / "p4"
        palettize(source, first, bits=4, progress=False)
        base = profile(first, threads=threads, cache=False)
        for name, changes in WHAT_IFS.items():
            what, now = base.what_if(changes), base.what_if()
            path = Path(folder) / name.replace(" ", "-").replace(",", "")
            report = palettize(source, path, recipe=what.recipe, progress=False)
            ratios: dict[str, list[float]] = {"decode": [], "prefill": []}
            for _ in range(rounds):
                old, new = (profile(model, threads=threads, repeats=8) for model in (first, path))
                for step, values in ratios.items():
                    values.append(old.total(step).seconds / new.total(step).seconds)
            found.append(
                {
                    "what_if": name,
                    "size": {"predicted": what.bytes, "measured": report.bytes},
                    **{
                        step: {
                            "predicted": getattr(now, f"{step}_seconds") / getattr(what, f"{step}_seconds"),
                            "measured": statistics.median(values),
                            "least": min(values),
                            "greatest": max(values),
                        }
                        for step, values in ratios.items()
                    },
                }
            )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source", nargs="?", type=Path, default=SOURCE)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    found = compare(args.source, args.threads, args.rounds)
    if args.json:
        print(json.dumps(found, indent=2))
        return
    print(f"pocketlm {pocketlm.__version__}; speeds are times those of the 4-bit model\n")
    print(
        "| what if | size predicted | measured | decode predicted | measured | prefill predicted | measured |"
    )
    print("|---|---|---|---|---|---|---|")
    for entry in found:
        size, cells = entry["size"], []
        for step in ("decode", "prefill"):
            value = entry[step]
            cells += [
                f"{value['predicted']:.3f}",
                f"{value['measured']:.3f} ({value['least']:.3f} to {value['greatest']:.3f})",
            ]
        print(f"| {entry['what_if']} | {size['predicted']:,} | {size['measured']:,} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
