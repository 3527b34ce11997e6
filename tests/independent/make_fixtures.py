"""Writes ``fixtures.npz``: mlx-lm's logits of every case, so that the tests need not have it installed.

Run as ``python tests/independent/make_fixtures.py`` with ``mlx[cpu]`` and ``mlx-lm`` installed.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from independent import cases, peer

FILE = Path(__file__).with_name("fixtures.npz")
ROWS = 16  # of each prompt, its end: what comes earlier is seen through attention


def main() -> None:
    arrays = {
        f"{case}/{precision}": peer.logits(config, cases.weights(case, precision), cases.ids(case))[-ROWS:]
        for case, config in cases.CASES.items()
        for precision in cases.PRECISIONS
    }
    np.savez_compressed(FILE, made_with=np.array(peer.version()), **arrays)
    print(f"{FILE.name}: {len(arrays)} sets by {peer.version()}, {FILE.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
