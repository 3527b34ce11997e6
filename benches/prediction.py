"""How well ``pocketlm profile`` predicts: what-ifs of a model beside the models that their recipes make.

    python benches/prediction.py [SOURCE] [--threads N] [--rounds R]

SOURCE is a 16-bit checkpoint (the story model's by default). It is palettized to 4 bits, and so is each
what-if by its recipe. A round profiles the 4-bit model, measures what other kinds take anew, and predicts
every what-if. Then each model that was predicted runs in turn with the 4-bit one, some steps each, again
and again: the memory of a shared machine may be fast for some seconds and slow for others, and the ratio of
neighbours is what lasts. The median ratio, predicted and measured, counts; times are those ratios times the
4-bit model's fastest profile. Beside it: how far steps with the clock, which the rows are parts of, are
from those without.

Everything is kept under ``--out``; ``--stage models`` makes the models and no more, so that an otherwise idle
machine is needed for short times only, and ``--more`` adds rounds to those that are there.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import statistics
import time
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
TURN_SECONDS = 0.02


class Bench:
    """A source, and where its models and measurements are."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.source: Path = args.source
        self.threads, self.rounds, self.repeats, self.turns = (
            args.threads,
            args.rounds,
            args.repeats,
            args.turns,
        )
        self.out: Path = args.out / "prediction" / f"{args.source.resolve().name}-{build()}"
        self.kept = self.out / f"rounds-{self.threads}-threads.json"
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
            self.kept.write_text(json.dumps(rounds, indent=1) + "\n")

    def _rounds(self) -> list[dict[str, Any]]:
        return list(json.loads(self.kept.read_text())) if self.kept.exists() else []

    def _round(self) -> dict[str, Any]:
        base = profile(self.out / "p4", threads=self.threads, repeats=self.repeats, cache=False)
        now, found = base.what_if(), {}
        for name in self.names:
            what = base.what_if(WHAT_IFS[name])
            again = profile(self.path(name), threads=self.threads, repeats=self.repeats)
            found[name] = {
                "base": {step: base.total(step).seconds for step in STEPS},
                "bytes": {"predicted": what.bytes, "measured": again.description.bytes},
                "apart": [apart(base), apart(again)],
                "predicted": {
                    "decode": what.decode_seconds / now.decode_seconds,
                    "prefill": what.prefill_seconds / now.prefill_seconds,
                },
                "measured": self._in_turn(base, self.path(name)),
            }
        return found

    def _in_turn(self, base: Profile, path: Path) -> dict[str, list[float]]:
        """Times of a model as parts of the 4-bit one's, turn by turn."""
        paths = self.out / "p4", path
        found: dict[str, list[float]] = {step: [] for step in STEPS}
        with contextlib.ExitStack() as stack:
            models = [stack.enter_context(pocketlm.load(path, threads=self.threads)) for path in paths]
            runs = [Turns(model, base.context, base.prompt) for model in models]
            for turn in range(self.turns):
                order = runs if turn % 2 else runs[::-1]
                for step in STEPS:
                    times = {id(run): run.seconds(step) for run in order}
                    found[step].append(times[id(runs[1])] / times[id(runs[0])])
        return found

    def results(self) -> list[dict[str, Any]]:
        """One entry for each what-if that was measured; times in seconds."""
        return results(self._rounds(), self.names)


class Turns:
    """Steps of a model as a profile runs them: a token after ``context`` others, or a prompt."""

    def __init__(self, model: pocketlm.LM, context: int, prompt: int) -> None:
        assert isinstance(model.engine, _core.Engine)
        self._engine, self._context = model.engine, context
        self._ids = [at % 50 for at in range(max(context + 1, prompt))]
        self._decoded, self._prompted = self._engine.sequence(), self._engine.sequence()
        self._prompt = prompt
        self._extend(self._decoded, context, sample=False)

    def seconds(self, step: str) -> float:
        """Mean time of the faster half of a turn's steps; of several, the first one brings the model into the
        caches and does not count."""
        run = self._decode if step == "decode" else self._prefill
        times: list[float] = []
        began = time.perf_counter()
        while not times or time.perf_counter() - began < TURN_SECONDS:
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
        steps = sorted(times[1:] or times)
        return statistics.fmean(steps[: (len(steps) + 1) // 2])

    def _decode(self) -> None:
        token = self._ids[self._context :][:1]
        self._engine.step([(self._decoded, token, _core.Sampler(temperature=0), "none")])
        self._decoded.truncate(self._context)

    def _prefill(self) -> None:
        self._extend(self._prompted, self._prompt, sample=True)
        self._prompted.truncate(0)

    def _extend(self, sequence: _core.Sequence, tokens: int, *, sample: bool) -> None:
        for at in range(0, tokens, self._engine.max_rows):
            ids = self._ids[at : min(tokens, at + self._engine.max_rows)]
            sampler = _core.Sampler(temperature=0) if sample and at + len(ids) == tokens else None
            self._engine.step([(sequence, ids, sampler, "none")])


def results(rounds: list[dict[str, Any]], names: list[str]) -> list[dict[str, Any]]:
    """Of each what-if its size, and of each step the ratio to the 4-bit model: predicted (median and range
    over the rounds), measured (median and quartiles over the turns), and by how much that is off."""
    found = []
    for name in names:
        of = [one[name] for one in rounds if name in one]
        if not of:
            continue
        apart = sorted(share for one in of for share in one["apart"])
        entry: dict[str, Any] = {"what_if": name, "size": of[0]["bytes"], "apart": apart}
        for step in STEPS:
            base = min(one["base"][step] for one in of)
            predicted = sorted(one["predicted"][step] for one in of)
            measured = sorted(ratio for one in of for ratio in one["measured"][step])
            low, middle, high = statistics.quantiles(measured, n=4)
            likely = statistics.median(predicted)
            entry[step] = {
                "seconds": {"predicted": base * likely, "measured": base * middle},
                "predicted": [likely, predicted[0], predicted[-1]],
                "measured": [middle, low, high],
                "off": middle / likely - 1,
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
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--turns", type=int, default=20, help="of each pair of models in a round")
    parser.add_argument(
        "--repeats", type=int, default=5, help="prefills of a profile; 20 times as many steps"
    )
    parser.add_argument("--stage", choices=STAGES)
    parser.add_argument("--more", action="store_true", help="keep the rounds of an earlier run")
    parser.add_argument("--only", action="append", metavar="WHAT_IF", choices=list(WHAT_IFS))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.rounds < 1 or args.turns < 2:
        parser.error("one round and two turns are the least")
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
    print(
        f"pocketlm {pocketlm.__version__}, {bench.threads} threads; ms a token and of a prompt, and these as "
        "parts of the 4-bit model's: predicted (range over rounds), measured (quartiles over turns)\n"
    )
    print(
        "| what if | size predicted | measured | decode predicted | measured | speed off by "
        "| prefill predicted | measured | speed off by | decode, timed apart |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for entry in found:
        size, cells = entry["size"], []
        for step in STEPS:
            value = entry[step]
            for side in ("predicted", "measured"):
                ratio, low, high = value[side]
                cells.append(f"{1e3 * value['seconds'][side]:.4g}: {ratio:.3f} ({low:.3f} to {high:.3f})")
            cells.append(f"{value['off']:+.1%}")
        print(
            f"| {entry['what_if']} | {size['predicted']:,} | {size['measured']:,} | {' | '.join(cells)} "
            f"| {statistics.median(entry['apart']):.1%} (to {entry['apart'][-1]:.1%}) |"
        )


if __name__ == "__main__":
    main()
