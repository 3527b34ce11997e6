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

LEAST = 0.01  # percent: what the picture shows in place of less


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
        """Bits per weight, everything counted, against perplexity: a panel for each text. The scale is of
        what the perplexity is above the source's, since the rest is the same for all.

        Raises:
            ImportError: matplotlib is not installed.
        """
        import matplotlib as mpl

        mpl.use("Agg")
        import matplotlib.pyplot as plt

        figure, axes = plt.subplots(1, len(self.parts), figsize=(5.8 * len(self.parts), 4.6), squeeze=False)
        for axis, text in zip(axes[0], self.parts, strict=True):
            self._side(axis, text, "llama.cpp", OTHER_COLORS[0], "s", above=True)
            self._side(axis, text, "pocketlm", COLORS["pocketlm"], "o", above=False)
            axis.set_yscale("log")
            axis.yaxis.set_major_formatter(lambda value, _: f"{value:g} %")
            axis.tick_params(labelsize=7, which="both")
            axis.set_xlabel("bits per weight, everything counted", fontsize=8)
            source = self.perplexity(self.rows[0], text).value
            axis.set_ylabel(f"perplexity above the source's {source:.2f}", fontsize=8)
            axis.set_title(text, fontsize=9)
            axis.legend(fontsize=7, frameon=False)
            axis.grid(alpha=0.25, linewidth=0.5)
            axis.spines[["top", "right"]].set_visible(False)
        figure.suptitle(title, fontsize=10)
        figure.tight_layout()
        figure.savefig(path, dpi=150)
        plt.close(figure)

    def _side(self, axis: Any, text: str, side: str, color: str, marker: str, *, above: bool) -> None:
        """One side's forms with their standard errors, and a line along those that no other beats."""
        shown = sorted((r for r in self.rows if r.side == side and r.bits_all < 12), key=lambda r: r.bits_all)
        edge: list[tuple[float, float]] = []
        for row in shown:
            found = self.ratio(row, self.rows[0], text)
            loss, error = max(100 * (found.value - 1), LEAST), 100 * (found.se or 0.0)
            down = min(error, loss - LEAST / 2)
            axis.errorbar(
                row.bits_all,
                loss,
                [[down], [error]],
                color=color,
                marker=marker,
                markersize=5,
                elinewidth=0.8,
            )
            axis.annotate(
                row.name, (row.bits_all, loss), xytext=(5, 4 if above else -9), textcoords="offset points",
                fontsize=6.5, color=color,
            )  # fmt: skip
            if not edge or loss < edge[-1][1]:
                edge.append((row.bits_all, loss))
        if edge:
            axis.plot(
                *zip(*edge, strict=True), color=color, marker=marker, markersize=5, linewidth=1, label=side
            )


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
