"""The figures and tables of ``benches/quality.py`` on made-up rows, and its own log-likelihood."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benches import quality_picture
from benches.llama_quality import target_names
from benches.quality import Row
from benches.quality_report import Report
from benches.window_scores import Scores

from pocketlm.evaluate.compare import divergences
from pocketlm.evaluate.windows import Window
from pocketlm.scores import token_logprobs

COUNTS = [10, 10, 20, 5]


def row(side: str, name: str, bits: float, extra: float, **details: object) -> Row:
    worse = [extra * count * (1 + 0.1 * i) for i, count in enumerate(COUNTS)]
    return Row(
        side,
        name,
        bits,
        bits,
        1000,
        [3.0 * n + w for n, w in zip(COUNTS, worse, strict=True)],
        worse,
        details,
    )


def report() -> Report:
    windows = [Window(list(range(count + 1)), 1, 4 * count) for count in COUNTS]
    rows = [
        row("pocketlm", "16", 16, 0),
        row("pocketlm", "4", 4.2, 0.01),
        row("pocketlm", "3", 3.2, 0.05),
        row("llama.cpp", "F16", 16, 0),
        row("llama.cpp", "Q4_0", 4.6, 0.04, odd_rows={"blk.0.attn_output.weight": [384, "Q5_0"]}),
        row("llama.cpp", "Q2_K", 2.9, 0.2, odd_rows={}),
    ]
    return Report({"first": 3, "second": 1}, windows, rows)


def test_ratios_are_paired_and_of_their_text() -> None:
    found = report()
    source, four = found.rows[0], found.rows[1]
    assert found.perplexity(source, "first").value == pytest.approx(math.exp(3))
    ratio = found.ratio(four, source, "first")
    assert ratio.value == pytest.approx(math.exp(0.01 * (10 + 11 + 24) / 40))
    assert ratio.se is not None and ratio.se < 0.001
    assert found.ratio(four, source, "second").se is None
    assert found.apart(source, four) == pytest.approx(0.01 * (10 + 11 + 24 + 6.5) / 45)


def test_rivals_have_no_more_bits() -> None:
    found = report()
    assert found.rivals(found.rows[4], "first").name == "4"  # type: ignore[union-attr]
    assert found.rivals(found.rows[5], "first") is None
    text = found.text()
    assert "none has so few bits" in text and "rows of 384 weights" in text
    assert text.count("| llama.cpp") == 4 and "± " in text
    kept = found.to_dict()
    assert kept["windows"]["texts"] == {"first": [0, 3], "second": [3, 4]}
    assert kept["rows"][1]["texts"]["second"]["ratio"]["se"] is None


def test_divergences_and_rivals_by_them() -> None:
    found = report()
    assert found.divergence(found.rows[1], "second").value == pytest.approx(0.013)
    ratio = found.divergence_ratio(found.rows[1], found.rows[4], "first")
    assert ratio.value == pytest.approx(0.25) and ratio.se == pytest.approx(0, abs=1e-12)
    found.rows[2].nll, found.rows[2].kl = [0.0] * 4, [9.0] * 4  # lucky, but far from the source
    assert found.rivals(found.rows[4], "first").name == "3"  # type: ignore[union-attr]
    assert found.rivals(found.rows[4], "first", found.divergence).name == "4"  # type: ignore[union-attr]


def test_sums_over_windows_are_those_of_single_tokens(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(0, 9, (2, 70, 50)).astype(np.float32)
    targets, file = rng.integers(0, 50, 70), tmp_path / "source.npy"

    def scored(logits: np.ndarray, written: int | None) -> Scores:
        scores = Scores([40, 30], file, written)
        for window, first, part in ((0, 0, slice(0, 33)), (0, 33, slice(33, 40)), (1, 0, slice(40, 70))):
            scores.add(window, first, logits[part], targets[part])
        return scores

    source, form = scored(rows[0], 50), scored(rows[1], None)
    for window, part in enumerate((slice(0, 40), slice(40, 70))):
        assert source.nll[window] == pytest.approx(
            -token_logprobs(rows[0][part], targets[part]).sum(), rel=1e-12
        )
        assert form.nll[window] == pytest.approx(
            -token_logprobs(rows[1][part], targets[part]).sum(), rel=1e-12
        )
        assert form.kl[window] == pytest.approx(divergences(rows[1][part], rows[0][part]).sum(), rel=1e-9)
    with pytest.raises(ValueError, match="window 1"):
        form.add(1, 25, rows[1][:6], targets[:6])
    with pytest.raises(ValueError, match="window 0"):
        form.add(0, 0, np.full((1, 50), np.nan, np.float32), targets[:1])


def test_the_picture_shows_what_damage_gained(tmp_path: Path) -> None:
    found = report()
    found.rows[2].nll = [2.9 * count for count in COUNTS]
    quality_picture.draw(found, "made up", tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000


def test_names_of_what_the_importance_matrix_covers() -> None:
    assert target_names("transformer.layers.3.ffn.proj_1.weight") == [
        "blk.3.ffn_gate.weight",
        "blk.3.ffn_up.weight",
    ]
    assert target_names("model.layers.0.self_attn.q_proj.weight") == ["blk.0.attn_q.weight"]
    assert target_names("transformer.token_embeddings.weight") == ["token_embd.weight"]
