"""Which bits where: one kind for all, 2 and 4 bits mixed, and all kinds, at the same average; and how well
single tensors' damages predict a whole model's.

    python benches/allocation.py --train training.txt --text held-out.txt

For each seed another slice of the training text calibrates and judges each tensor (its end, which calibration
does not see); every model is then measured on the held-out text, which nothing else sees. Measurements are
kept under ``--out``: the same command goes on where it stopped, and more seeds only add to it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benches import machine
from pocketlm._core import palettize_tensor
from pocketlm.kinds import BEST, BITS
from pocketlm.loading.directory import DirectoryWriter
from pocketlm.palettize.budgets import Budgets
from pocketlm.palettize.divergence import Divergence
from pocketlm.palettize.held_out import sequences
from pocketlm.palettize.importance import Statistics
from pocketlm.palettize.planner import Planner
from pocketlm.palettize.recipe import Candidate, Recipe
from pocketlm.palettize.work import Work

ROOT = Path(__file__).resolve().parents[1]
BUDGETS = (2.5, 3.0, 3.5, 4.0)
WAYS = ("even", "2 and 4", "free")
SLICE = 400_000  # characters of training text for each seed
EVERYTHING = ",".join(map(str, sorted(BEST)))


class Seed:
    """A calibration of the source, with what was measured by it."""

    def __init__(self, args: argparse.Namespace, seed: int) -> None:
        self.args, self.seed = args, seed
        place = (seed + 1) * 0.618034 % 1  # far from those of other seeds, however many there are
        with args.train.open(encoding="utf-8", errors="replace") as file:
            file.seek(int(place * max(0, args.train.stat().st_size - 2 * SLICE)))
            file.readline()
            text = file.read(SLICE)
        limits = Budgets.of(bits=8)
        told = Statistics([text])
        self.work = Work(args.model, limits, told, None, None, palettize_tensor, args.threads, args.progress)
        self.held_out = Divergence(
            self.work.model,
            sequences(self.work.model, [args.text.read_text(encoding="utf-8")]),
            args.threads,
        )
        self.judging = Divergence(self.work.model, self.work.sequences, args.threads)
        self.writer = DirectoryWriter(args.out / f"seed-{seed}", self.work.key)

    def run(self) -> dict[str, Any]:
        """Models at each average, and random recipes."""
        with self.writer as writer:
            writer.record("begun", {})
            self.work.importance.prepare(writer, threads=self.args.threads, progress=self.args.progress)
            damages = self.planner(EVERYTHING, 8.0).plan().sensitivity
            found: dict[str, Any] = {"seed": self.seed, "models": [], "random": []}
            for bits in BUDGETS:
                for way in WAYS:
                    recipe = self.choose(way, bits)
                    found["models"].append({"budget": bits, "way": way, **self.figures(recipe, damages)})
                    print(json.dumps(found["models"][-1]), flush=True)
            rng = np.random.default_rng(self.seed)
            for _ in range(self.args.recipes):
                found["random"].append(self.figures(self.random(rng), damages))
            return found

    def planner(self, kinds: str, bits: float) -> Planner:
        """Plans from this seed's measurements."""
        return Planner(
            self.work.model,
            self.work.known,
            {},
            Budgets.of(bits=bits, kinds=kinds),
            self.work.importance,
            self.work.sequences,
            self.writer,
            self.work.forms,
            recovery=self.work.recovery,
            threads=self.args.threads,
            timed=False,
            progress=self.args.progress,
        )

    def choose(self, way: str, bits: float) -> Recipe:
        """The recipe of one way; embedding and head have 8 bits."""
        if way == "even":
            return even(self.work.known, bits)
        return self.planner("2,4" if way == "2 and 4" else EVERYTHING, bits).plan().recipe

    def random(self, rng: np.random.Generator) -> Recipe:
        """Kinds drawn in shares that are drawn too."""
        kinds = sorted(BEST.values(), key=lambda kind: BITS[kind])
        shares = rng.dirichlet(np.ones(len(kinds)))
        recipe = {tensor.name: str(rng.choice(kinds, p=shares)) for tensor in self.work.known}
        # A large embedding would decide alone where its damage is large.
        recipe |= {tensor.name: "p8" for tensor in self.work.known if tensor.is_embedding}
        return recipe

    def figures(self, recipe: Recipe, damages: Any) -> dict[str, float]:
        """Bits, and divergence as predicted, on the text that predicts, and on the held-out text."""
        inner = [tensor for tensor in self.work.known if not tensor.is_embedding]
        elements = sum(tensor.elements for tensor in inner)
        facts = json.dumps(recipe) + self.held_out.digest
        note = f"figures {hashlib.sha256(facts.encode()).hexdigest()}"
        found = self.writer.note(note)
        if found is None:
            chosen = {tensor: recipe[tensor.name] for tensor in self.work.known}
            store = self.work.forms.overlaid(self.work.model.store, chosen)
            found = {"judged": self.judging.of(store), "held_out": self.held_out.of(store)}
            self.writer.record(note, found)
        return {
            "bits": sum(BITS[recipe[t.name]] * t.elements for t in inner) / elements,
            "predicted": sum(damages[name][kind] for name, kind in recipe.items()),
            **found,
        }


def even(known: list[Candidate], bits: float) -> Recipe:
    """Without knowledge: the two nearest kinds, spread evenly over the projections in order of execution."""
    low = max(b for b in BEST if b <= bits)
    high = min(b for b in BEST if b >= bits)
    recipe = {tensor.name: "p8" for tensor in known if tensor.is_embedding}
    done, spent = 0, 0.0
    for tensor in (t for t in known if not t.is_embedding):
        done += tensor.elements
        fits = spent + high * tensor.elements <= bits * done + 1e-6
        recipe[tensor.name] = BEST[high if fits else low]
        spent += (high if fits else low) * tensor.elements
    return {tensor.name: recipe[tensor.name] for tensor in known}


def spearman(first: list[float], second: list[float]) -> float:
    """Rank correlation (without ties)."""
    one, other = (np.argsort(np.argsort(values)) for values in (first, second))
    return float(np.corrcoef([one, other])[0, 1])


def summary(seeds: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds with their standard errors."""
    rows = []
    for bits in BUDGETS:
        each = {
            way: [next(m for m in seed["models"] if (m["budget"], m["way"]) == (bits, way)) for seed in seeds]
            for way in WAYS
        }
        for way, models in each.items():
            kls = np.array([model["held_out"] for model in models])
            against = kls / np.array([model["held_out"] for model in each["free"]])
            rows.append(
                {
                    "budget": bits,
                    "way": way,
                    "bits": float(np.mean([model["bits"] for model in models])),
                    "kl": float(kls.mean()),
                    "kl_se": error(kls),
                    "times_free": float(against.mean()),
                    "times_free_se": error(against),
                    "predicted": float(np.mean([model["predicted"] for model in models])),
                    "judged": float(np.mean([model["judged"] for model in models])),
                }
            )
    ranks = {
        text: [
            spearman([r["predicted"] for r in seed["random"]], [r[text] for r in seed["random"]])
            for seed in seeds
        ]
        for text in ("judged", "held_out")
    }
    return {"rows": rows, "spearman": ranks}


def error(values: Any) -> float | None:
    """Standard error of a mean."""
    return float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None


def table(found: dict[str, Any]) -> str:
    """What is to be read."""
    lines = ["| budget | way | bits | KL, held out | times free | predicted | measured where predicted |"]
    lines.append("|---|---|---|---|---|---|---|")
    for row in found["rows"]:
        kl, times = (
            f"{row[key]:.{digits}f}"
            + ("" if row[f"{key}_se"] is None else f" ± {row[f'{key}_se']:.{digits}f}")
            for key, digits in (("kl", 4), ("times_free", 2))
        )
        lines.append(
            f"| {row['budget']:g} | {row['way']} | {row['bits']:.3f} | {kl} | {times} "
            f"| {row['predicted']:.4f} | {row['judged']:.4f} |"
        )
    for text, ranks in found["spearman"].items():
        each = ", ".join(f"{rank:.3f}" for rank in ranks)
        lines.append(f"\nSpearman of predicted and measured KL of random recipes, {text}: {each}")
    return "\n".join(lines)


def picture(found: dict[str, Any], seeds: list[dict[str, Any]], path: Path) -> None:
    """Divergence against bits, and measured against predicted."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator, NullFormatter

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5))
    for way, color in zip(WAYS, ("#999999", "#d97706", "#2563eb"), strict=True):
        rows = [row for row in found["rows"] if row["way"] == way]
        left.errorbar(
            [row["bits"] for row in rows],
            [row["kl"] for row in rows],
            [row["kl_se"] or 0 for row in rows],
            marker="o",
            capsize=3,
            color=color,
            label=way,
        )
    left.set(xlabel="bits of a code, projections", ylabel="KL from the source, nats a token", yscale="log")
    left.legend(title="kinds")
    for seed in seeds:
        right.scatter(
            [r["predicted"] for r in seed["random"]], [r["judged"] for r in seed["random"]], s=18, alpha=0.7,
            label=f"seed {seed['seed']}",
        )  # fmt: skip
    ends = [min(min(left.get_ylim()), 0.01), max(r["judged"] for s in seeds for r in s["random"])]
    right.plot(ends, ends, color="#999999", lw=1)
    right.set(xscale="log", yscale="log", xlabel="predicted KL of random recipes", ylabel="measured KL")
    right.legend()
    for axis in (left.yaxis, right.xaxis, right.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.set_minor_formatter(NullFormatter())
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def main() -> None:
    """Runs the seeds and reports."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "pocketlm-stories")
    parser.add_argument("--train", type=Path, required=True, help="text of the kind that the model knows")
    parser.add_argument("--text", type=Path, required=True, help="held-out text")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--recipes", type=int, default=20, help="random ones, for each seed")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--no-progress", dest="progress", action="store_false", help="no progress bars")
    parser.add_argument("--out", type=Path, default=ROOT / "benches" / "out")
    args = parser.parse_args()
    args.out = args.out.resolve() / "allocation" / args.model.resolve().name
    args.out.mkdir(parents=True, exist_ok=True)
    seeds = [Seed(args, seed).run() for seed in range(args.seeds)]
    found = summary(seeds)
    kept = {"machine": machine.describe(), "date": time.strftime("%Y-%m-%d"), **found, "seeds": seeds}
    stem = args.out / "allocation"
    stem.with_suffix(".json").write_text(json.dumps(kept, indent=1) + "\n")
    print("\n" + table(found) + f"\n\n{stem.with_suffix('.json')}")
    try:
        picture(found, seeds, stem.with_suffix(".png"))
        print(stem.with_suffix(".png"))
    except ImportError:
        print("no picture: matplotlib is not installed")


if __name__ == "__main__":
    main()
