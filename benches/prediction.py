"""How well ``pocketlm profile`` predicts: what-ifs of a model beside the models that their recipes make.

    python benches/prediction.py [SOURCE] [--threads N] [--rounds R]

SOURCE is a 16-bit checkpoint (the story model's by default). It is palettized to 4 bits, profiled, and each
what-if is predicted; then its recipe is applied and the outcome measured, in turn with the 4-bit model, so
that a drifting machine meets both. What counts is the ratio of two neighbours, beside the predicted ratio;
and how far steps with the clock, which the rows are parts of, are from those without.

Everything is kept under ``--out``, apart for each build of pocketlm. ``--stage`` does a part of it:
``models``, ``predict``, or ``measure`` (with ``--only`` of some what-ifs), so that an idle machine is
needed for short times only.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
from pathlib import Path
from typing import Any

import pocketlm
from pocketlm import _core
from pocketlm.palettize import palettize
from pocketlm.palettize.work import ARITHMETIC
from pocketlm.profile import Profile, profile

SOURCE = Path(__file__).parent.parent / "models" / "pocketlm-stories"
WHAT_IFS: dict[str, dict[str, str]] = {
    "ffn at 2 bits": {"ffn.*": "p2"},
    "all at 3 bits": {"layers.*": "p3"},
    "all at 2 bits, head at 4": {"layers.*": "p2", "head": "p4"},
    "all at 8 bits": {"layers.*": "p8"},
    "attention at 8, down at 2": {"attn.*": "p8", "ffn.down": "p2"},
}


STAGES = ("models", "predict", "measure")


class Bench:
    """A source, and where its models and measurements are."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.source: Path = args.source
        self.threads, self.rounds, self.repeats = args.threads, args.rounds, args.repeats
        self.out: Path = args.out / "prediction" / f"{args.source.resolve().name}-{build()}"
        self.names = [name for name in WHAT_IFS if not args.only or name in args.only]

    def path(self, name: str) -> Path:
        """The model of a what-if."""
        return self.out / name.replace(" ", "-").replace(",", "")

    def models(self) -> None:
        """Makes the models that are not there yet."""
        self.out.mkdir(parents=True, exist_ok=True)
        first = self.out / "p4"
        if not first.exists():
            palettize(self.source, first, bits=4, progress=False)
        now = json.loads((first / "recipe.json").read_text())
        for name, changes in WHAT_IFS.items():
            if not self.path(name).exists():
                # What the changes do not name stays.
                palettize(self.source, self.path(name), recipe={**now, **changes}, progress=False)

    def predict(self) -> None:
        """Profiles the 4-bit model and predicts the others."""
        base = profile(self.out / "p4", threads=self.threads, repeats=self.repeats, cache=False)
        now, found = base.what_if(), {}
        for name, changes in WHAT_IFS.items():
            what = base.what_if(changes)
            found[name] = {
                "bytes": what.bytes,
                "decode": now.decode_seconds / what.decode_seconds,
                "prefill": now.prefill_seconds / what.prefill_seconds,
            }
        self.keep("predicted", found)

    def measure(self) -> None:
        """Measures the models, each in turn with the 4-bit one."""
        for name in self.names:
            rounds = []
            for _ in range(self.rounds):
                old, new = (
                    profile(model, threads=self.threads, repeats=self.repeats)
                    for model in (self.out / "p4", self.path(name))
                )
                one: dict[str, Any] = {"apart": max(map(apart, (old, new)))}
                for step in ("decode", "prefill"):
                    one[step] = old.total(step).seconds / new.total(step).seconds
                rounds.append(one)
            self.keep(f"measured {name}", {"bytes": new.description.bytes, "rounds": rounds})

    def keep(self, name: str, value: Any) -> None:
        """Writes measurements."""
        (self.out / f"{name}.json").write_text(json.dumps(value, indent=1) + "\n")

    def results(self) -> list[dict[str, Any]]:
        """One entry for each what-if that was measured."""
        predicted, found = json.loads((self.out / "predicted.json").read_text()), []
        for name in WHAT_IFS:
            file = self.out / f"measured {name}.json"
            if not file.exists():
                continue
            measured = json.loads(file.read_text())
            entry: dict[str, Any] = {
                "what_if": name,
                "size": {"predicted": predicted[name]["bytes"], "measured": measured["bytes"]},
                "apart": max(one["apart"] for one in measured["rounds"]),
            }
            for step in ("decode", "prefill"):
                values = [one[step] for one in measured["rounds"]]
                entry[step] = {
                    "predicted": predicted[name][step],
                    "measured": statistics.median(values),
                    "least": min(values),
                    "greatest": max(values),
                }
            found.append(entry)
        return found


def build() -> str:
    """Tells models and times of one build from those of another."""
    facts = Path(_core.__file__).read_bytes() + str(ARITHMETIC).encode()
    return hashlib.sha256(facts).hexdigest()[:12]


def apart(found: Profile) -> float:
    """How far the phases of steps with the clock are from adding up to steps without it, as a share."""
    decode = found.decode
    return abs(decode.timed_seconds / decode.seconds - 1)


def main() -> None:
    """Runs the stages and reports."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", nargs="?", type=Path, default=SOURCE)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--repeats", type=int, default=5, help="prefills of a profile; 20 times as many steps"
    )
    parser.add_argument("--stage", choices=STAGES)
    parser.add_argument("--only", action="append", metavar="WHAT_IF", choices=list(WHAT_IFS))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    bench = Bench(args)
    for stage in STAGES:
        if args.stage in (None, stage):
            getattr(bench, stage)()
    if args.stage in ("models", "predict"):
        return
    found = bench.results()
    if args.json:
        print(json.dumps(found, indent=2))
        return
    print(f"pocketlm {pocketlm.__version__}; speeds are times those of the 4-bit model\n")
    print(
        "| what if | size predicted | measured | decode predicted | measured | prefill predicted | measured "
        "| decode, timed apart |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for entry in found:
        size, cells = entry["size"], []
        for step in ("decode", "prefill"):
            value = entry[step]
            cells += [
                f"{value['predicted']:.3f}",
                f"{value['measured']:.3f} ({value['least']:.3f} to {value['greatest']:.3f})",
            ]
        print(
            f"| {entry['what_if']} | {size['predicted']:,} | {size['measured']:,} | {' | '.join(cells)} "
            f"| {entry['apart']:.1%} |"
        )


if __name__ == "__main__":
    main()
