"""Tables and the picture of ``benches/quality.py``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benches.report import COLORS, OTHER_COLORS, table
from pocketlm.evaluate.statistics import Estimate, mean
from pocketlm.evaluate.windows import Window


class Report:
    """Rows of forms, the first of which is the source, over texts (name: number of windows)."""

    def __init__(self, texts: Mapping[str, int], windows: Sequence[Window], rows: list[Any]) -> None:
        self.rows = rows
        self.counts = np.array([window.scored for window in windows])
        self.sizes = np.array([window.bytes for window in windows])
        ends = np.cumsum(list(texts.values()))
        self.parts = {
            name: slice(int(end) - count, int(end))
            for (name, count), end in zip(texts.items(), ends, strict=True)
        }

    def perplexity(self, row: Any, text: str) -> Estimate:
        """Of one text, with its standard error over windows."""
        part = self.parts[text]
        return mean(np.asarray(row.nll)[part], self.counts[part]).exp()

    def ratio(self, row: Any, to: Any, text: str) -> Estimate:
        """Perplexity over that of another row, paired by window."""
        part = self.parts[text]
        difference: NDArray[np.float64] = np.asarray(row.nll)[part] - np.asarray(to.nll)[part]
        return mean(difference, self.counts[part]).exp()

    def apart(self, row: Any, other: Any) -> float:
        """Nats per token by which ``other`` is worse, over all texts."""
        return float((np.asarray(other.nll) - np.asarray(row.nll)).sum() / self.counts.sum())

    def line(self, row: Any) -> str:
        """One row, while the bench goes on."""
        found = []
        for text in self.parts:
            ratio = self.ratio(row, self.rows[0], text).value
            found.append(f"{text} {self.perplexity(row, text).value:.3f} (x {ratio:.4f})")
        return f"{row.side} {row.name}: {row.bits_all:.3f} bits, {', '.join(found)}"

    def rivals(self, row: Any, text: str) -> Any | None:
        """The best form of ours that has no more bits than ``row``, everything counted."""
        fit = [r for r in self.rows if r.side == "pocketlm" and r.bits_all <= row.bits_all + 1e-9]
        return min(fit, key=lambda r: self.perplexity(r, text).value, default=None)

    def text(self) -> str:
        """The tables, in Markdown."""
        columns = ["form", "bits, projections", "bits, all", "MB"]
        for text in self.parts:
            columns += [f"{text}: perplexity", "ratio to source"]
        body = [self._cells(row) for row in sorted(self.rows, key=lambda r: (r.side, r.bits_all))]
        parts = [table(columns, body)]
        compressed = [row for row in self.rows if row.side != "pocketlm" and row.name != "F16"]
        if compressed:
            parts.append(self._against(compressed))
            parts += [line for row in compressed if (line := _odd(row))][:1]
        return "\n\n".join(parts)

    def _cells(self, row: Any) -> list[str]:
        name = f"{row.side} {row.name}"
        cells = [name, f"{row.bits_projections:.3f}", f"{row.bits_all:.3f}", f"{row.bytes / 1e6:.2f}"]
        for text in self.parts:
            cells.append(f"{self.perplexity(row, text).value:.4f}")
            cells.append(_figure(self.ratio(row, self.rows[0], text)))
        return cells

    def _against(self, theirs: Sequence[Any]) -> str:
        body = []
        for row in theirs:
            for text in self.parts:
                ours = self.rivals(row, text)
                cells = [f"{row.name}, {row.bits_all:.3f} bits", text]
                if ours is None:
                    body.append([*cells, "none has so few bits", ""])
                    continue
                ratio = self.ratio(ours, row, text)
                body.append([*cells, f"{ours.name}, {ours.bits_all:.3f} bits", _figure(ratio)])
        return table(
            ["llama.cpp", "text", "best of ours in no more bits", "our perplexity over theirs"], body
        )

    def to_dict(self) -> dict[str, Any]:
        """As plain data: every window's log-likelihood, and what follows from them."""
        return {
            "windows": {
                "tokens": self.counts.tolist(),
                "bytes": self.sizes.tolist(),
                "texts": {name: [part.start, part.stop] for name, part in self.parts.items()},
            },
            "rows": [
                asdict(row)
                | {
                    "texts": {
                        text: {
                            "perplexity": asdict(self.perplexity(row, text)),
                            "ratio": asdict(self.ratio(row, self.rows[0], text)),
                        }
                        for text in self.parts
                    }
                }
                for row in self.rows
            ],
        }

    def picture(self, title: str, path: Path) -> None:
        """Bits per weight, everything counted, against perplexity: a panel for each text.

        Raises:
            ImportError: matplotlib is not installed.
        """
        import matplotlib as mpl

        mpl.use("Agg")
        import matplotlib.pyplot as plt
        from matplotlib.ticker import ScalarFormatter

        figure, axes = plt.subplots(1, len(self.parts), figsize=(5.6 * len(self.parts), 4.4), squeeze=False)
        for axis, text in zip(axes[0], self.parts, strict=True):
            for side, color, marker in (
                ("llama.cpp", OTHER_COLORS[0], "s"),
                ("pocketlm", COLORS["pocketlm"], "o"),
            ):
                shown = [row for row in self.rows if row.side == side and row.bits_all < 12]
                shown.sort(key=lambda row: row.bits_all)
                if not shown:
                    continue
                x = [row.bits_all for row in shown]
                found = [self.perplexity(row, text).value for row in shown]
                axis.plot(x, found, marker, color=color, markersize=5, label=side)
                if side == "pocketlm":
                    axis.plot(x, found, color=color, linewidth=1)
                for row, bits, value in zip(shown, x, found, strict=True):
                    below = side == "pocketlm"
                    axis.annotate(
                        row.name, (bits, value), xytext=(0, -9 if below else 5), textcoords="offset points",
                        fontsize=6.5, color=color, ha="center",
                    )  # fmt: skip
            source = self.perplexity(self.rows[0], text).value
            axis.axhline(source, color="#16a34a", linewidth=1, linestyle="--", label="16-bit source")
            axis.set_yscale("log")
            axis.yaxis.set_major_formatter(ScalarFormatter())
            axis.yaxis.set_minor_formatter(ScalarFormatter())
            axis.tick_params(labelsize=7, which="both")
            axis.set_xlabel("bits per weight, everything counted", fontsize=8)
            axis.set_ylabel("perplexity", fontsize=8)
            axis.set_title(text, fontsize=9)
            axis.legend(fontsize=7, frameon=False)
            axis.spines[["top", "right"]].set_visible(False)
        figure.suptitle(title, fontsize=10)
        figure.tight_layout()
        figure.savefig(path, dpi=150)
        plt.close(figure)


def _figure(value: Estimate) -> str:
    return f"{value.value:.4f}" + ("" if value.se is None else f" ± {value.se:.4f}")


def _odd(row: Any) -> str:
    odd = row.details["odd_rows"]
    if not odd:
        return ""
    lengths = sorted({length for length, _ in odd.values()})
    return (
        f"{len(odd)} projections have rows of {', '.join(map(str, lengths))} weights, not a multiple of 256: "
        "llama.cpp gives them other types than asked for (`odd_rows` in the JSON); real bits are counted."
    )
