"""The rows of ``benches/quality.py``, one after the other: kept as they come, whatever fails."""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from benches import environment, machine, quality_picture, quality_report
from pocketlm.errors import PocketlmError
from pocketlm.loading.files import write_whole

if TYPE_CHECKING:
    from benches.quality import Bench

SAME = 0.005  # nats per token by which the two sides may differ on the 16-bit weights


@dataclass
class Row:
    """One form of the model: its size, and of each window its negative log-likelihood and the sum of
    KL(source || form), in nats."""

    side: str
    name: str
    bits_projections: float
    bits_all: float
    bytes: int
    nll: list[float]
    kl: list[float]
    details: dict[str, Any] = field(default_factory=dict)


class Run:
    """The rows of a bench, kept in its JSON file as they come. What fails is noted there, and the others go
    on."""

    def __init__(self, args: argparse.Namespace, bench: Bench) -> None:
        self.args, self.bench = args, bench
        self.rows: list[Row] = []
        self.not_run: dict[str, str] = {}
        texts = {name: len(cut) for name, cut in bench.texts.items()}
        self.report = quality_report.Report(texts, bench.windows, self.rows)
        self.stem = bench.out / f"quality-{args.model.name}"

    def all(self) -> None:
        """Makes, scores and reports every form.

        Raises:
            SystemExit: the source cannot be scored, or the runtimes disagree about it.
        """
        args, bench = self.args, self.bench
        if self.row("pocketlm 16", lambda: bench.ours("16")) is None:
            raise SystemExit("the source cannot be scored, which everything is compared with")
        print(f"{len(bench.windows)} windows, {sum(w.scored for w in bench.windows)} tokens", flush=True)
        for spec in args.ours:
            self.row(f"pocketlm {spec}", lambda spec=spec: bench.ours(spec))  # type: ignore[misc]
        if args.theirs:
            self.theirs()
        print("\n" + self.report.text())
        for name, reason in self.not_run.items():
            print(f"not run: {name} ({reason.splitlines()[0]})")
        print(f"\n{self.stem.with_suffix('.json')}")
        picture = self.stem.with_suffix(".png")
        try:
            if quality_picture.draw(self.report, f"{args.model.name}: bits and what they lose", picture):
                print(picture)
        except ImportError:
            print("no picture: matplotlib is not installed")

    def theirs(self) -> None:
        """The rows of llama.cpp, and ours of as many bits beside each."""
        args, bench = self.args, self.bench

        def source() -> Row:
            bench.prepare_theirs()
            return bench.theirs("F16")

        first = self.row("llama.cpp F16", source)
        if first is None:
            self.not_run |= {f"llama.cpp {name}": "its F16 did not run" for name in args.theirs}
            self.write()
            return
        apart = self.report.apart(self.rows[0], first)
        print(f"llama.cpp F16: {apart:+.5f} nats per token from pocketlm's", flush=True)
        if abs(apart) > SAME:
            raise SystemExit(
                "the two runtimes disagree on the 16-bit weights: they do not run the same model"
            )
        for name in args.theirs:
            row = self.row(f"llama.cpp {name}", lambda name=name: bench.theirs(name))  # type: ignore[misc]
            if row is None:
                continue
            bits = math.floor(1000 * row.bits_all) / 1000
            for options in args.matched:
                spec = f"all{bits}" + (options and f",{options}")
                self.row(f"pocketlm {spec}", lambda spec=spec: bench.ours(spec))  # type: ignore[misc]

    def row(self, name: str, make: Callable[[], Row]) -> Row | None:
        """One more row, if it can be made."""
        made = None
        try:
            made = make()
            self.rows.append(made)
            print(self.report.line(made), flush=True)
        except (environment.CannotRunError, PocketlmError) as problem:
            self.not_run[name] = str(problem)
            print(f"not run: {name} ({problem})", flush=True)
        self.write()
        return made

    def write(self) -> None:
        """Keeps what there is."""
        args = self.args
        settings = {"context": args.context, "limit": args.limit, "calibration": args.calibration is not None}
        kept = {"machine": self.machine, "date": time.strftime("%Y-%m-%d"), "settings": settings}
        found = self.report.to_dict() if self.rows else {"rows": []}
        text = json.dumps(kept | found | {"not_run": self.not_run}, indent=1) + "\n"
        write_whole(self.stem.with_suffix(".json"), text)

    @cached_property
    def machine(self) -> dict[str, Any]:
        """Where this runs."""
        return machine.describe()
