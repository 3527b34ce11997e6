"""What pocketlm wants to be, as figures, and how far it is on this machine.

    python -m benches.goals --list             # the goals
    python -m benches.goals                    # all of them: hours, most of it other runtimes' installation
    python -m benches.goals speed load --repeats 3 --without torchao mistralrs

Each group of goals is one comparison of ``benches/peers.py``, which builds and installs the other runtimes
and keeps finished runs: what was broken off goes on where it stopped. Ratios are the medians of neighbouring
runs. A figure is beside the best of the runtimes that ran; those that did not are named.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benches import machine, peers, report
from benches.results import Run
from benches.variant import ROOT, Variant

FOUR_BITS = (
    "llama_cpp:Q4_0", "llama_cpp:Q4_K_M", "openvino_genai:int4", "onnxruntime_genai:int4", "torchao:int4",
    "mistralrs:Q4K",
)  # fmt: skip
EIGHT_BITS = ("ctranslate2:int8",)
SMALL = "--shape llama-3.2-1b --vocab 32000"


@dataclass(frozen=True)
class Goal:
    """A figure of a variant's runs: how many times better than the best of ``beside``, how many times its own
    figure ``over``, or by itself."""

    variant: str
    figure: str
    least: float
    beside: tuple[str, ...] = ()
    over: str = ""

    def __str__(self) -> str:
        figure, least = self.figure.replace("_", " ").removesuffix(" seconds"), f"{self.least:g}"
        if "share" in self.figure:
            least = f"{self.least:.0%}"
        elif self.over:
            least += f" times its {self.over.replace('_', ' ')}"
        else:
            least += f" times {self.beside[0] if len(self.beside) == 1 else 'the best'}"
        return f"{self.variant}: {figure}, {least}"

    def found(self, runs: Mapping[str, Sequence[Run]]) -> dict[str, float] | None:
        """Median, least and greatest of the figure; ``None`` where nothing of it was measured."""
        ours = runs.get(self.variant)
        if not ours or any(key not in ours[0]["figures"] for key in (self.figure, self.over) if key):
            return None
        if self.beside:
            compared = [report.ratios(ours, runs[other]) for other in self.beside if other in runs]
            known = [ratios[self.figure] for ratios in compared if self.figure in ratios]
            return min(known, key=lambda ratio: ratio["median"], default=None)
        figures = [run["figures"] for run in ours]
        values = [values[self.figure] / (values[self.over] if self.over else 1) for values in figures]
        return report.spread(values)


@dataclass(frozen=True)
class Group:
    """A comparison, by the options of ``benches/peers.py``, and what is wanted of it."""

    options: str
    goals: tuple[Goal, ...]

    def variants(self) -> list[str]:
        """All that take part, pocketlm's first."""
        ours = dict.fromkeys(goal.variant for goal in self.goals)
        return list(ours | dict.fromkeys(other for goal in self.goals for other in goal.beside))


GROUPS = {
    "speed": Group(
        SMALL,
        (
            Goal("pocketlm:4", "decode", 1.2, ("llama_cpp:Q4_0",)),
            Goal("pocketlm:4", "decode", 1.0, FOUR_BITS),
            Goal("pocketlm:all3.5", "decode", 1.4, ("llama_cpp:Q4_0",)),
            Goal("pocketlm:2", "decode", 2.0, ("llama_cpp:Q2_K",)),
            Goal("pocketlm:4", "bandwidth_share", 0.88),
            Goal("pocketlm:4", "prefill_512", 1.3, FOUR_BITS + EIGHT_BITS),
            Goal("pocketlm:4", "prefill_2048", 1.3, FOUR_BITS + EIGHT_BITS),
            Goal("pocketlm:4", "int8_peak_share_512", 0.6),
            Goal("pocketlm:4", "int8_peak_share_2048", 0.6),
            Goal("pocketlm:4", "decode_after_2048", 1.7, ("llama_cpp:Q4_0",)),
        ),
    ),
    "long": Group(
        f"{SMALL} --prompt 512 --after 8192 16384",
        (
            Goal("pocketlm:4", "decode_after_16384", 2.0, ("llama_cpp:Q4_0",)),
            Goal("pocketlm_kv8:4", "decode_after_8192", 1.0, ("pocketlm:4",)),
            Goal("pocketlm_kv8:4", "decode_after_16384", 1.0, ("pocketlm:4",)),
        ),
    ),
    "3b": Group(
        "--shape llama-3b --prompt 512 --after 2048",
        (
            Goal("pocketlm:3.5", "decode", 1.35, FOUR_BITS[1:4]),
            Goal("pocketlm:3.5", "decode_after_2048", 1.7, FOUR_BITS[1:4]),
            Goal("pocketlm:3.5", "prefill_512", 1.3, ("openvino_genai:int4",)),
        ),
    ),
    "openelm": Group(
        "--shape openelm-3b --prompt 512 --after 2048",
        (
            Goal("pocketlm:3.5", "decode", 1.35, ("llama_cpp:Q4_K_M",)),
            Goal("pocketlm:3.5", "decode_after_2048", 1.7, ("llama_cpp:Q4_K_M",)),
        ),
    ),
    "load": Group(
        f"{SMALL} --only-load",
        (
            Goal("pocketlm:4", "load_to_first_token_seconds", 10.0, ("llama_cpp:Q4_0",)),
            Goal("pocketlm:4", "load_to_first_token_seconds", 10.0, ("llama_cpp:Q4_K_M",)),
            Goal("pocketlm:4", "peak_bytes", 2.0, ("llama_cpp:Q4_0",)),
        ),
    ),
    "tiny": Group(
        "--shape llama-tiny --prompt 512 --after 2048",
        (Goal("pocketlm:4", "decode", 1.0, ("onnxruntime_genai:int4", "llama_cpp:Q4_0", *FOUR_BITS[2:3])),),
    ),
    "batches": Group(
        f"{SMALL} --prompt 16 --after --generate 32 --batch 2 8",
        tuple(
            Goal(variant, f"decode_batch_{rows}", least, over="decode")
            for variant in ("pocketlm:4", "pocketlm:8", "pocketlm:16")
            for rows, least in ((2, 1.8), (8, 5.0))
        ),
    ),
    "avx2": Group(
        f"{SMALL} --prompt 512 --after",
        (
            Goal("pocketlm_avx2:4", "bandwidth_share", 0.8),
            Goal("pocketlm_avx2:4", "prefill_512", 1.0, ("llama_cpp_avx2:Q4_0",)),
        ),
    ),
}
GUESSES = {"edit": 1.5, "fresh": 0.98}  # times the speed without guessed tokens, by workload


def compared(name: str, repeats: int, without: Sequence[str], kept: bool) -> list[dict[str, Any]]:
    """Measures a group and returns a row for each of its goals."""
    group = GROUPS[name]
    variants = [spec for spec in group.variants() if spec.partition(":")[0] not in without]
    options = [*group.options.split(), "--repeats", str(repeats), *(["--kept"] if kept else [])]
    # The variants before the options, of which some take any number of values.
    runs, reasons = peers.compare(peers.parse([*variants, *options]))
    rows = []
    for goal in group.goals:
        absent = [spec for spec in (goal.variant, *goal.beside) if spec not in runs]
        said = [f"{spec}: {reasons.get(spec, 'left out')}" for spec in absent]
        rows.append(row(name, str(goal), goal.least, goal.found(runs), said))
    return rows


def guessed(rounds: int, out: Path) -> list[dict[str, Any]]:
    """What guessed tokens are worth to the model of the other goals, by ``benches/speculation.py``."""
    args = peers.parse(["pocketlm:4", *SMALL.split()])
    model = Variant("pocketlm:4", args)
    model.prepare(peers.make_checkpoint(args))
    command = [sys.executable, "-m", "benches.speculation", model.model, "--tokens", "120"]
    command += ["--threads", str(args.threads), "--rounds", str(rounds), "--json", str(out)]
    subprocess.run(command, check=True, cwd=ROOT)
    found = json.loads(out.read_text())["workloads"]
    rows = []
    for kind, least in GUESSES.items():
        low, high = found[kind]["quartiles"]
        ratio = {"median": found[kind]["ratio"], "min": low, "max": high}
        rows.append(row("guesses", f"pocketlm:4: {kind}, {least:g} times without guesses", least, ratio, []))
    return rows


def row(
    group: str, goal: str, least: float, found: Mapping[str, float] | None, absent: Sequence[str]
) -> dict[str, Any]:
    """A goal with what was found."""
    reached = None if found is None else found["median"] >= least
    return {"group": group, "goal": goal, "found": found, "reached": reached, "not run": list(absent)}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The goals as a Markdown table, and which runtimes are not in it."""
    words = {True: "yes", False: "no", None: "not measured"}
    cells = [[r["group"], r["goal"], report.ratio(r["found"]), words[r["reached"]]] for r in rows]
    absent = dict.fromkeys(f"{r['group']}: without {said}" for r in rows for said in r["not run"])
    parts = [report.table(["group", "goal", "found", "reached"], cells)]
    return "\n".join([*parts, "", *absent] if absent else parts)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [*GROUPS, "guesses"]
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"of {', '.join(names)}; default: all")
    parser.add_argument("--repeats", type=int, default=5, help="rounds of each comparison (default 5)")
    parser.add_argument(
        "--without", nargs="*", default=[], metavar="RUNTIME", help="runtimes to leave out, such as torchao"
    )
    parser.add_argument("--kept", action="store_true", help="measure nothing: judge the runs that were kept")
    parser.add_argument("--list", action="store_true", help="only say what the goals are")
    args = parser.parse_args()
    if unknown := [name for name in args.groups if name not in names]:
        parser.error(f"no group is called {unknown[0]!r}; there are {', '.join(names)}")
    if args.repeats < 1:
        parser.error("--repeats must be positive")
    if args.list:
        goals = [row(name, str(goal), goal.least, None, []) for name, g in GROUPS.items() for goal in g.goals]
        print(report.table(["group", "goal"], [[r["group"], r["goal"]] for r in goals]))
        return
    out = ROOT / "benches" / "out"
    out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for name in args.groups or names:
        print(f"\n== {name}", flush=True)
        if name in GROUPS:
            rows += compared(name, args.repeats, args.without, args.kept)
        elif not args.kept:
            rows += guessed(args.repeats, out / "goals-guesses.json")
        # After each, so that what follows may be broken off.
        values = {"machine": machine.describe(), "date": time.strftime("%Y-%m-%d"), "goals": rows}
        (out / "goals.json").write_text(json.dumps(values, indent=1) + "\n")
    print("\n" + table(rows))


if __name__ == "__main__":
    main()
