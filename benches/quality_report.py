"""Tables of ``benches/quality.py``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benches.report import table
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

    def divergence(self, row: Any, text: str) -> Estimate:
        """KL(source || form), in nats per token."""
        part = self.parts[text]
        return mean(np.asarray(row.kl)[part], self.counts[part])

    def divergence_ratio(self, row: Any, to: Any, text: str) -> Estimate:
        """Divergence over that of another row; the error is that of a ratio of sums over the same windows."""
        part = self.parts[text]
        return mean(np.asarray(row.kl)[part], np.asarray(to.kl)[part])

    def apart(self, row: Any, other: Any) -> float:
        """Nats per token by which ``other`` is worse, over all texts."""
        return float((np.asarray(other.nll) - np.asarray(row.nll)).sum() / self.counts.sum())

    def line(self, row: Any) -> str:
        """One row, while the bench goes on."""
        found = []
        for text in self.parts:
            ratio = self.ratio(row, self.rows[0], text).value
            kl = self.divergence(row, text).value
            found.append(f"{text} {self.perplexity(row, text).value:.3f} (x {ratio:.4f}, KL {kl:.5f})")
        return f"{row.side} {row.name}: {row.bits_all:.3f} bits, {', '.join(found)}"

    def rivals(self, row: Any, text: str, by: Callable[[Any, str], Estimate] | None = None) -> Any | None:
        """The best form of ours that has no more bits than ``row``, everything counted: by perplexity, or by
        :meth:`divergence`."""
        fit = [r for r in self.rows if r.side == "pocketlm" and r.bits_all <= row.bits_all + 1e-9]
        return min(fit, key=lambda r: (by or self.perplexity)(r, text).value, default=None)

    def text(self) -> str:
        """The tables, in Markdown."""
        columns = ["form", "bits, projections", "bits, all", "MB"]
        for text in self.parts:
            columns += [f"{text}: perplexity", "ratio to source", "KL, nats per token"]
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
            cells.append(_figure(self.divergence(row, text), 5))
        return cells

    def _against(self, theirs: Sequence[Any]) -> str:
        body = []
        for row in theirs:
            for text in self.parts:
                ours, nearest = self.rivals(row, text), self.rivals(row, text, self.divergence)
                cells = [f"{row.name}, {row.bits_all:.3f} bits", text]
                if ours is None or nearest is None:
                    body.append([*cells, "none has so few bits", "", "", ""])
                    continue
                for best, figure in (
                    (ours, self.ratio(ours, row, text)),
                    (nearest, self.divergence_ratio(nearest, row, text)),
                ):
                    cells += [f"{best.name}, {best.bits_all:.3f} bits", _figure(figure)]
                body.append(cells)
        columns = ["llama.cpp", "text", "best of ours in no more bits", "our perplexity over theirs"]
        return table([*columns, "nearest of ours to the source", "our KL over theirs"], body)

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
                            "kl": asdict(self.divergence(row, text)),
                        }
                        for text in self.parts
                    }
                }
                for row in self.rows
            ],
        }


def _figure(value: Estimate, digits: int = 4) -> str:
    return f"{value.value:.{digits}f}" + ("" if value.se is None else f" ± {value.se:.{digits}f}")


def _odd(row: Any) -> str:
    odd = row.details["odd_rows"]
    if not odd:
        return ""
    lengths = sorted({length for length, _ in odd.values()})
    return (
        f"{len(odd)} projections have rows of {', '.join(map(str, lengths))} weights, not a multiple of 256: "
        "llama.cpp gives them other types than asked for (`odd_rows` in the JSON); real bits are counted."
    )
