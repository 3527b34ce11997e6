"""Perplexity against bits: a 16-bit model through pocketlm's kinds and through llama.cpp's types, all scored
on the same held-out tokens in the same windows.

    python benches/quality.py --text held-out.txt --calibration training.txt

The calibration text is the same on both sides; its end is left out of it and tells pocketlm what each kind
costs. Beside each of llama.cpp's types stands our model of as many bits. Each side runs its own files the way
that it runs them for users, rounding of activations included. Ratios to the source are paired by window,
with standard errors.

Perplexity on text that is foreign to a model may fall when the model is damaged, by luck; the divergence
from the source, KL(source || form), cannot. Both are scored.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benches import environment
from benches.adapters import adapter
from benches.quality_run import Row, Run
from benches.window_scores import Scores
from pocketlm.evaluate.windows import Window, windows
from pocketlm.loading import open_model
from pocketlm.palettize.calibrate import calibrate
from pocketlm.palettize.calibration import Calibration
from pocketlm.palettize.held_out import hold_out
from pocketlm.palettize.text import read_windows

ROOT = Path(__file__).resolve().parents[1]
BITS = ("2", "2.5", "3", "3.5", "4", "5", "8")
OURS = (*BITS, *(f"{bits},recover=8" for bits in BITS), "3.5,kv=int8", "3.5,act=f32")
THEIRS = ("IQ2_S", "Q2_K", "IQ3_S", "Q3_K_M", "IQ4_XS", "Q4_0", "Q4_K_M", "Q5_K_M", "Q8_0")
PLAIN = "-plain"  # ends the name of a type that is to be made without the importance matrix
TOGETHER = 4  # windows that run as one batch


class Bench:
    """The source, the windows and where things are kept."""

    def __init__(self, args: argparse.Namespace) -> None:
        import pocketlm

        self.args = args
        self.out: Path = args.out / "quality" / args.model.name
        self.out.mkdir(parents=True, exist_ok=True)
        self.source = self.out / "source-logits.npy"
        self.texts: dict[str, list[Window]] = {}
        with pocketlm.load(args.model, threads=args.threads) as source:
            if args.context > source.context:
                raise SystemExit(f"--context: the model's is {source.context}")
            for path in args.text:
                cut = windows(source.tokenizer, path, context=args.context, limit=args.limit)
                self.texts[path.stem] = list(cut)
        self.windows = [window for cut in self.texts.values() for window in cut]
        if not all(self.texts.values()):
            raise SystemExit("--text: a file holds no text")
        self.stored = self.calibrate()

    def ours(self, spec: str) -> Row:
        """A row of pocketlm: ``16`` for the source, bits with options of ``pocketlm palettize``
        (``3.5,embedding-bits=4``; ``all4.5`` for bits of everything), with a type of the cache
        (``3.5,kv=int8``) or of the activations (``3.5,act=f32``), or ``name=path`` of a model that is there
        already."""
        first, *options = spec.split(",")
        name, _, path = first.partition("=")
        if path:
            return self.score_ours(name, Path(path))
        if first == "16":
            return self.score_ours("16", self.args.model)
        loading: dict[str, Any] = {}
        for option in [option for option in options if option.startswith(("kv=", "act="))]:
            options.remove(option)
            key, _, value = option.partition("=")
            if key == "act" and value not in ("f32", "int8"):
                raise environment.CannotRunError(f"act: {value!r} is neither f32 nor int8")
            loading |= {"kv_dtype": value} if key == "kv" else {"precise": value == "f32"}
        target = self.out / f"pocketlm-{re.sub('[=,/]', '_', ','.join([first, *options]))}"
        command = [sys.executable, "-m", "pocketlm", "palettize", str(self.args.model)]
        budget = ["--bits-all", first[3:]] if first.startswith("all") else ["--bits", first]
        command += [str(target), "--overwrite", *budget]
        if self.stored is not None:
            command += ["--calibration", str(self.stored), "--validation", str(self.out / "judge.txt")]
        for option in options:
            key, _, value = option.partition("=")
            command += [f"--{key}", *([value] if value else [])]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise environment.CannotRunError(done.stderr[-2000:].strip() or f"status {done.returncode}")
        return self.score_ours(spec, target, **loading)

    def score_ours(self, name: str, path: Path, **loading: Any) -> Row:
        """Scores a model directory, opened with the options ``loading`` of :func:`pocketlm.load`."""
        import pocketlm

        with pocketlm.load(path, threads=self.args.threads, **loading) as lm:
            written = lm.engine.vocab_size if path == self.args.model else None
            scores = Scores([window.scored for window in self.windows], self.source, written)
            for start in range(0, len(self.windows), TOGETHER):
                together = range(start, min(start + TOGETHER, len(self.windows)))
                receivers = [self._receiver(scores, index) for index in together]
                lm.evaluate([self.windows[index].ids for index in together], receivers)
            info = lm.info
            projections, everything = info.bits_per_weight_projections, info.bits_per_weight_all
            nll, kl = scores.nll.tolist(), scores.kl.tolist()
            return Row("pocketlm", name, projections, everything, info.bytes, nll, kl)

    def _receiver(self, scores: Scores, index: int) -> Callable[[int, NDArray[np.float32]], None]:
        window = self.windows[index]
        targets = np.asarray(window.ids[1:])

        def receive(start: int, rows: NDArray[np.float32]) -> None:
            # Row i predicts token i + 1.
            low, high = max(start, window.first - 1), min(start + len(rows), len(targets))
            if low < high:
                scores.add(index, low - window.first + 1, rows[low - start : high - start], targets[low:high])

        return receive

    def calibrate(self) -> Path | None:
        """The statistics of the calibration text, in a directory; what judges is in ``judge.txt``."""
        if not self.args.calibration:
            return None
        model = open_model(self.args.model)
        text, judges = hold_out(self.args.calibration, None)
        (self.out / "judge.txt").write_text("\n".join(judges))
        target = self.out / "calibration"
        shutil.rmtree(target, ignore_errors=True)
        assert text is not None
        calibrate(model, read_windows(text, model), target, threads=self.args.threads)
        return target

    def importance(self) -> Path | None:
        """Mean squares of the inputs of every matrix over the calibration text, in a file."""
        if self.stored is None:
            return None
        stored = Calibration.open(self.stored)
        names = [name for name in stored.tensors if stored.multiplies(name)]
        moments = {name: np.diagonal(stored.second_moment(name)) for name in names}
        path = self.out / "importance.npz"
        np.savez(path, **moments)  # type: ignore[arg-type]
        return path

    def prepare_theirs(self) -> None:
        """Makes the environment, the importance matrix and the list of tokens."""
        peer = adapter("llama_cpp")
        self.python = environment.python(peer, "llama_cpp", self.args.out / "envs")
        for stale in self.out.glob("*.gguf"):
            stale.unlink()
        self.moments = self.importance()
        self.tokens = self.out / "windows.npz"
        np.savez(
            self.tokens,
            ids=np.array([token for window in self.windows for token in window.ids], np.int32),
            ends=np.cumsum([len(window.ids) for window in self.windows]),
            first=np.array([window.first for window in self.windows]),
        )

    def theirs(self, name: str) -> Row:
        """A row of llama.cpp: a type's name, ``F16`` for the source."""
        kind = name.removesuffix(PLAIN)
        plain = name.endswith(PLAIN) or kind == "F16"
        file = self.task(
            "quantize",
            base=str(self.out / "F16.gguf"),
            target=str(self.out / f"{name}.gguf"),
            checkpoint=str(self.args.model),
            type=kind,
            moments="" if plain or self.moments is None else str(self.moments),
        )
        done = self.task("score", model=file["model"], windows=str(self.tokens), source=str(self.source))
        sizes = file.pop("bits_projections"), file.pop("bits_all"), file.pop("bytes")
        file["version"] = done["version"]
        file["importance_matrix"] = not plain and self.moments is not None
        return Row("llama.cpp", name, *sizes, done["nll"], done["kl"], file)

    def task(self, do: str, **fields: Any) -> dict[str, Any]:
        """Runs ``benches.llama_quality`` in llama.cpp's environment."""
        with tempfile.TemporaryDirectory() as folder:
            file, out = Path(folder) / "task.json", Path(folder) / "result.json"
            file.write_text(json.dumps({"do": do, "threads": self.args.threads, "out": str(out)} | fields))
            done = subprocess.run(
                [str(self.python), "-m", "benches.llama_quality", str(file)],
                cwd=ROOT,
                env=os.environ | {"OMP_NUM_THREADS": str(self.args.threads)},
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode or not out.exists():
                raise environment.CannotRunError(
                    f"{do} failed ({done.returncode})\n{done.stderr[-3000:]}".rstrip()
                )
            result: dict[str, Any] = json.loads(out.read_text())
            return result


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "pocketlm-stories")
    parser.add_argument("--text", type=Path, action="append", required=True, help="held-out text; repeatable")
    parser.add_argument("--calibration", type=Path, help="text of the kind that the model was trained on")
    parser.add_argument("--context", type=int, default=512, help="tokens of a window (512)")
    parser.add_argument("--limit", type=int, help="tokens of each text; all without it")
    parser.add_argument(
        "--ours", nargs="*", default=list(OURS), metavar="SPEC",
        help="bits with options of `pocketlm palettize` (3.5,embedding-bits=4), with a type of the cache "
        "(3.5,kv=int8) or of the activations (3.5,act=f32), or NAME=PATH of a model",
    )  # fmt: skip
    parser.add_argument(
        "--theirs", nargs="*", default=list(THEIRS), metavar="TYPE",
        help=f"llama.cpp's types, none for pocketlm alone; TYPE{PLAIN} without the importance matrix",
    )  # fmt: skip
    parser.add_argument(
        "--matched", nargs="*", default=[""], metavar="OPTIONS",
        help="beside each of llama.cpp's types, our models of as many bits with these options of "
        "`pocketlm palettize` (recover-train=400k,recover-text=FILE); one without options by default",
    )  # fmt: skip
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=ROOT / "benches" / "out")
    args = parser.parse_args(arguments)
    args.out, args.model = args.out.resolve(), args.model.resolve()
    if len({path.stem for path in args.text}) < len(args.text):
        parser.error("--text: two files have the same name")
    if args.context < 2 or args.threads < 1 or (args.limit is not None and args.limit < 1):
        parser.error("numbers must be positive, and --context at least 2")
    return args


def main(arguments: Sequence[str] | None = None) -> None:
    """Makes, scores and reports every form."""
    args = parse(arguments)
    bench = Bench(args)
    try:
        Run(args, bench).all()
    finally:
        bench.source.unlink(missing_ok=True)  # it is large


if __name__ == "__main__":
    main()
