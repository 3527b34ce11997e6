"""The figures and tables of ``benches/quality.py`` on made-up rows, and its own log-likelihood."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benches import environment, quality, quality_picture
from benches.llama_quality import target_names
from benches.quality_report import Report
from benches.quality_run import Row, Run
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
    assert quality_picture.draw(found, "made up", tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000
    found.rows[:] = [row for row in found.rows if row.bits_all >= quality_picture.MOST_BITS]
    assert not quality_picture.draw(found, "nothing to show", tmp_path / "none.png")


def arguments(source: Path, folder: Path, *more: str) -> list[str]:
    """A tiny model on short texts."""
    text = folder / "text.txt"
    text.write_text("\n".join(" ".join(f"w{i * 7 % (90 + line)}" for i in range(200)) for line in range(40)))
    options = ["--context", "32", "--limit", "300", "--threads", "1", "--calibration", str(text)]
    return ["--model", str(source), "--text", str(text), "--out", str(folder / "out"), *options, *more]


def test_the_bench_runs_through(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quality.main(arguments(source, tmp_path, "--ours", "8", "all5,kv=int8,act=f32", "0.5", "--theirs"))
    out = capsys.readouterr().out
    (kept,) = (tmp_path / "out" / "quality").glob("*/quality-*.json")
    found = json.loads(kept.read_text())
    names = ["16", "8", "all5,kv=int8,act=f32"]
    assert [(row["side"], row["name"]) for row in found["rows"]] == [("pocketlm", name) for name in names]
    assert sum(found["windows"]["tokens"]) == 300 and found["settings"]["context"] == 32
    first, eight, small = (row["texts"]["text"] for row in found["rows"])
    assert first["kl"]["value"] == pytest.approx(0, abs=1e-6) and first["ratio"]["value"] == 1
    assert 0 < eight["kl"]["value"] < small["kl"]["value"] < 1
    assert found["rows"][2]["bits_all"] <= 5 and found["machine"]["processor"]
    # What cannot be made is told, and the others go on.
    assert list(found["not_run"]) == ["pocketlm 0.5"] and "not run: pocketlm 0.5 (" in out
    assert "| pocketlm all5,kv=int8,act=f32 |" in out and str(kept) in out
    assert not list(kept.parent.glob("*.npy"))


class Stand:
    """A bench whose rows are made up; what is in ``fails`` fails."""

    def __init__(self, folder: Path, *fails: str) -> None:
        made = report()
        self.out, self.fails = folder, fails
        self.windows = [Window(list(range(count + 1)), 1, 4 * count) for count in COUNTS]
        self.texts = {"first": self.windows[:3], "second": self.windows[3:]}
        self.made = {(row.side, row.name): row for row in made.rows}

    def prepare_theirs(self) -> None:
        self._row("llama.cpp", "prepare")

    def ours(self, spec: str) -> Row | None:
        return self._row("pocketlm", spec)

    def theirs(self, name: str) -> Row | None:
        return self._row("llama.cpp", name)

    def _row(self, side: str, name: str) -> Row | None:
        if name in self.fails:
            raise environment.CannotRunError(f"{name} failed\nlong story")
        if name == "killed":
            raise KeyboardInterrupt
        return None if name == "prepare" else self.made[side, "4" if name.startswith("all") else name]


def run(bench: Stand, *theirs: str) -> Run:
    args = quality.parse(["--text", "x", "--ours", "4", "3", "--theirs", *theirs])
    return Run(args, bench)  # type: ignore[arg-type]


def test_rows_are_kept_whatever_fails_or_ends_the_bench(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def kept() -> tuple[list[str], list[str]]:
        (file,) = tmp_path.glob("*.json")
        found = json.loads(file.read_text())
        return [row["name"] for row in found["rows"]], list(found["not_run"])

    run(Stand(tmp_path, "Q4_0", "3"), "Q4_0", "Q2_K").all()
    assert kept() == (["16", "4", "F16", "Q2_K", "4"], ["pocketlm 3", "llama.cpp Q4_0"])
    out = capsys.readouterr().out
    assert "not run: llama.cpp Q4_0 (Q4_0 failed)" in out and "| llama.cpp Q2_K |" in out
    for broken in ("F16", "prepare"):
        run(Stand(tmp_path, broken), "Q4_0", "Q2_K").all()
        assert kept() == (["16", "4", "3"], [f"llama.cpp {name}" for name in ("F16", "Q4_0", "Q2_K")])
    with pytest.raises(KeyboardInterrupt):
        run(Stand(tmp_path), "Q4_0", "killed").all()
    assert kept() == (["16", "4", "3", "F16", "Q4_0", "4"], [])
    apart = Stand(tmp_path)
    apart.made["llama.cpp", "F16"].nll = [9.0 * count for count in COUNTS]
    with pytest.raises(SystemExit, match="disagree"):
        run(apart, "Q4_0").all()
    assert kept() == (["16", "4", "3", "F16"], [])
    with pytest.raises(SystemExit, match="the source"):
        run(Stand(tmp_path, "16"), "Q4_0").all()
    assert kept() == ([], ["pocketlm 16"])


def test_names_of_what_the_importance_matrix_covers() -> None:
    assert target_names("transformer.layers.3.ffn.proj_1.weight") == [
        "blk.3.ffn_gate.weight",
        "blk.3.ffn_up.weight",
    ]
    assert target_names("model.layers.0.self_attn.q_proj.weight") == ["blk.0.attn_q.weight"]
    assert target_names("transformer.token_embeddings.weight") == ["token_embd.weight"]
