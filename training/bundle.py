"""Palettize the story model into the package: the bits where they count, then codebooks, scales and norms
learn from the source.

The texts are the training text's own, in pieces that are drawn for one purpose each: to calibrate, to judge
what each kind costs, and to learn from. Evaluation texts are seen by none of them.

Run ``python -m training.bundle --data TEXTS``.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import asdict, dataclass
from pathlib import Path

from pocketlm.palettize import palettize
from training.overlap import Document
from training.text import read_train

ROOT = Path(__file__).resolve().parents[1]
SEED = 0
PIECE = 8192  # characters
CALIBRATION = 1 << 20  # characters of all pieces: several times the windows that are taken from them
JUDGES = 1 << 16
CHARACTERS = 5  # for each token to learn from, some more than a token has


@dataclass(frozen=True)
class Texts:
    """Pieces to calibrate with, to judge by and to learn from."""

    calibration: list[str]
    validation: list[str]
    training: list[str]


def draw(documents: list[Document], tokens: int) -> Texts:
    """Draws pieces; ``tokens`` are to be learned from."""
    pieces = [piece for document in documents for piece in cut(document.text)]
    random.Random(SEED).shuffle(pieces)
    sizes = {"calibration": CALIBRATION, "validation": JUDGES, "training": tokens * CHARACTERS}
    found: dict[str, list[str]] = {}
    for name, size in sizes.items():
        found[name] = []
        while size > 0 and pieces:
            found[name].append(pieces.pop())
            size -= len(found[name][-1])
    return Texts(**found)


def cut(text: str) -> list[str]:
    """Whole paragraphs, at least :data:`PIECE` characters each but for the last."""
    pieces: list[str] = []
    for paragraph in text.split("\n\n"):
        if pieces and len(pieces[-1]) < PIECE:
            pieces[-1] += "\n\n" + paragraph
        else:
            pieces.append(paragraph)
    return pieces


def main() -> None:
    """Palettizes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="the folder of training texts")
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "pocketlm-stories")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "python" / "pocketlm" / "assets" / "pocketlm-stories"
    )
    parser.add_argument("--bits", type=float, default=3.5, help="of the projections (3.5)")
    parser.add_argument("--tokens", type=int, default=800_000, help="to learn from (800000)")
    parser.add_argument("--texts", type=Path, help="write the texts into this folder, and do no more")
    parser.add_argument("--recover", type=int, default=0, help="average rank of an adapter (0: none)")
    args = parser.parse_args()
    texts = draw(read_train(args.data)[0], args.tokens)
    if args.texts:
        args.texts.mkdir(parents=True, exist_ok=True)
        for name, pieces in asdict(texts).items():
            (args.texts / f"{name}.txt").write_text("\n\n".join(pieces))
        return
    report = palettize(
        args.model,
        args.out,
        bits=args.bits,
        calibration=texts.calibration,
        validation=texts.validation,
        recover=args.recover,
        recover_train=args.tokens,
        recover_text=texts.training if args.tokens else None,
        overwrite=True,
    )
    print(
        f"{report.path}: {report.bits_per_weight_projections:.3f} bits, "
        f"{report.bits_per_weight_all:.3f} of everything"
    )
    if report.plan.measured_kl is not None:
        print(f"{report.plan.measured_kl:.4f} nats a token from the source before learning")
    if report.recovery is not None and report.recovery.losses is not None:
        print("learning: {:.4f} to {:.4f} nats a token".format(*report.recovery.losses))


if __name__ == "__main__":
    main()
