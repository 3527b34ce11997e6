"""How well ``pocketlm profile`` predicts: what-ifs of a model beside the models that their recipes make.

    python benches/prediction.py [SOURCE] [--threads N] [--rounds R]

SOURCE is a 16-bit checkpoint (the story model's by default). It is palettized to 4 bits, and so is each
what-if by its recipe. A round profiles the 4-bit model, measures the products anew, predicts every what-if,
and profiles the models that were predicted, each in turn with the 4-bit one. The memory of a shared machine
may be fast for some seconds and slow for others, and what others do only ever adds to a time. So what counts
is the fastest of as many profiles on both sides: the 4-bit model's, times the median of the predicted ratios,
beside that of the model which was predicted in turn with it. Ranges tell the slower ones. Beside it: how far
steps with the clock, which the rows are parts of, are from those without.

Everything is kept under ``--out``; ``--stage models`` makes the models and no more, so that an otherwise idle
machine is needed for short times only, and ``--more`` adds rounds to those that are there.
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


STAGES = ("models", "measure")
STEPS = ("decode", "prefill")


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

    def measure(self, more: bool = False) -> None:
        """Rounds of predictions and measurements."""
        rounds: list[dict[str, Any]] = self._rounds() if more else []
        for _ in range(self.rounds):
            rounds.append(self._round())
            (self.out / "rounds.json").write_text(json.dumps(rounds, indent=1) + "\n")

    def _rounds(self) -> list[dict[str, Any]]:
        file = self.out / "rounds.json"
        return list(json.loads(file.read_text())) if file.exists() else []

    def _round(self) -> dict[str, Any]:
        base = profile(self.out / "p4", threads=self.threads, repeats=self.repeats, cache=False)
        now = base.what_if()
        found: dict[str, Any] = {}
        for name in self.names:
            what = base.what_if(WHAT_IFS[name])
            predicted = {
                "bytes": what.bytes,
                "decode": what.decode_seconds / now.decode_seconds,
                "prefill": what.prefill_seconds / now.prefill_seconds,
            }
            again, model = (
                self._measured(profile(path, threads=self.threads, repeats=self.repeats))
                for path in (self.out / "p4", self.path(name))
            )
            found[name] = {"predicted": predicted, "base": again, "measured": model}
        return found

    @staticmethod
    def _measured(found: Profile) -> dict[str, float]:
        seconds = {step: found.total(step).seconds for step in STEPS}
        return {"bytes": found.description.bytes, "apart": apart(found), **seconds}

    def results(self) -> list[dict[str, Any]]:
        """One entry for each what-if that was measured; times in seconds."""
        return results(self._rounds(), self.names)


def results(rounds: list[dict[str, Any]], names: list[str]) -> list[dict[str, Any]]:
    """Of each what-if its size, and of each step the prediction, the fastest measurement, the ranges of both,
    and by how much the predicted speed is off."""
    found = []
    for name in names:
        of = [one[name] for one in rounds if name in one]
        if not of:
            continue
        entry: dict[str, Any] = {
            "what_if": name,
            "size": {"predicted": of[0]["predicted"]["bytes"], "measured": of[0]["measured"]["bytes"]},
            "apart": sorted(one[side]["apart"] for one in of for side in ("base", "measured")),
        }
        for step in STEPS:
            base = min(one["base"][step] for one in of)
            predicted = [base * one["predicted"][step] for one in of]
            measured = [one["measured"][step] for one in of]
            likely = statistics.median(predicted)
            entry[step] = {
                "predicted": likely,
                "measured": min(measured),
                "off": min(measured) / likely - 1,
                "ranges": [[min(predicted), max(predicted)], [min(measured), max(measured)]],
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
    parser.add_argument("--threads", type=int, default=_core.cpu_count(), help="the same on both sides")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument(
        "--repeats", type=int, default=5, help="prefills of a profile; 20 times as many steps"
    )
    parser.add_argument("--stage", choices=STAGES)
    parser.add_argument("--more", action="store_true", help="keep the rounds of an earlier run")
    parser.add_argument("--only", action="append", metavar="WHAT_IF", choices=list(WHAT_IFS))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    bench = Bench(args)
    if args.stage in (None, "models"):
        bench.models()
    if args.stage == "models":
        return
    bench.measure(args.more)
    found = bench.results()
    if args.json:
        print(json.dumps(found, indent=2))
        return
    print(f"pocketlm {pocketlm.__version__}; ms a token, and of a prompt; ranges over the rounds\n")
    print(
        "| what if | size predicted | measured | decode predicted | measured | speed off by "
        "| prefill predicted | measured | speed off by | decode, timed apart |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for entry in found:
        size, cells = entry["size"], []
        for step in STEPS:
            value = entry[step]
            for side, (least, greatest) in zip(("predicted", "measured"), value["ranges"], strict=True):
                figures = (1e3 * seconds for seconds in (value[side], least, greatest))
                cells.append("{:.4g} ({:.4g} to {:.4g})".format(*figures))
            cells.append(f"{value['off']:+.1%}")
        print(
            f"| {entry['what_if']} | {size['predicted']:,} | {size['measured']:,} | {' | '.join(cells)} "
            f"| {statistics.median(entry['apart']):.1%} (to {entry['apart'][-1]:.1%}) |"
        )


if __name__ == "__main__":
    main()
