"""Comparisons of two models against a plain recomputation, and standard errors against simulation."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fake_engine import FakeEngine, FakeSampler
from pocketlm.errors import MissingFileError, ParameterError, TokenizerError, WeightError
from pocketlm.evaluate.compare import compare
from pocketlm.evaluate.statistics import mean, quantile
from pocketlm.model import LM
from pocketlm.tokenizer import Tokenizer
from tokenizer_files import byte_level, metaspace

TEXT = "once upon a time there was a naïve little girl.\nthe café 日本語の本 😀\n" * 9


class Shifted(FakeEngine):
    """The fake engine's logits with a second opinion mixed in, and rows in smaller steps."""

    def __init__(self, vocab_size: int, amount: float, **settings: Any) -> None:
        super().__init__(vocab_size, **settings)
        self.amount = amount

    def logits(self, ids: list[int]) -> np.ndarray:
        other = super().logits([*ids, 0])
        return (super().logits(ids) + self.amount * other).astype(np.float32)


def make(amount: float = 0.0, bos: bool = True, **settings: Any) -> LM:
    tokenizer = Tokenizer(byte_level(bos), config={"bos_token": "<|bos|>"} if bos else {})
    engine = Shifted(tokenizer.size, amount, **settings)
    return LM(engine, tokenizer, FakeSampler, name=f"shifted {amount}")  # type: ignore[arg-type]


def fake(tokenizer: Tokenizer, vocab_size: int | None = None) -> LM:
    return LM(FakeEngine(vocab_size or tokenizer.size), tokenizer, FakeSampler)  # type: ignore[arg-type]


def plain(lm: LM, source: LM, windows: list[tuple[list[int], int]]) -> dict[str, list[list[float]]]:
    """Figures of every token, by window, from full distributions in float64."""
    found: dict[str, list[list[float]]] = {"model": [], "source": [], "kl": [], "same": []}
    for ids, first in windows:
        for values in found.values():
            values.append([])
        for index in range(first, len(ids)):
            p, q = (
                np.asarray(x.engine.logits(ids[:index]), np.float64)  # type: ignore[attr-defined]
                for x in (source, lm)
            )
            p, q = (x - math.log(np.exp(x - x.max()).sum()) - x.max() for x in (p, q))
            found["model"][-1].append(q[ids[index]])
            found["source"][-1].append(p[ids[index]])
            found["kl"][-1].append(float((np.exp(p) * (p - q)).sum()))
            found["same"][-1].append(float(p.argmax() == q.argmax()))
    return found


@pytest.mark.parametrize("bos", [True, False])
def test_equals_the_plain_sums(tmp_path: Path, bos: bool) -> None:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    context = 40
    with make(0.3, bos, max_rows=7) as lm, make(0.0, bos) as source:
        ids = lm.tokenizer.encode(TEXT, bos=False)
        # Windows of 39 new tokens after one that is only read; the last reaches back to be full.
        windows = []
        for start in range(0 if bos else 1, len(ids), context - 1):
            end = min(start + context - 1, len(ids))
            begin = max(0, end - context + (1 if bos else 0))
            head = [0] if bos else []
            windows.append((head + ids[begin:end], len(head) + start - begin))
        expected = plain(lm, source, windows)
        found = compare(lm, source, path, context=context)
        alone = lm.perplexity(path, context=context)
    flat = {key: np.concatenate([np.asarray(w) for w in values]) for key, values in expected.items()}
    assert found.model.to_dict() == pytest.approx(alone.to_dict(), rel=1e-12)
    assert found.model.tokens == len(flat["kl"]) == len(ids) - (0 if bos else 1)
    assert found.source.nll == pytest.approx(-flat["source"].sum(), rel=1e-9)
    ratio = math.exp((flat["source"] - flat["model"]).mean())
    assert found.perplexity_ratio == pytest.approx(ratio, rel=1e-9) and ratio > 1
    assert found.kl_mean == pytest.approx(flat["kl"].mean(), rel=1e-9)
    assert found.top1_agreement == flat["same"].mean()
    assert found.kl_p999 == pytest.approx(np.sort(flat["kl"])[math.ceil(0.999 * len(flat["kl"])) - 1])
    # The paired error, from its definition.
    sums = np.array([sum(s) - sum(m) for s, m in zip(expected["source"], expected["model"], strict=True)])
    counts = np.array([len(w) for w in expected["kl"]])
    rest = sums - math.log(ratio) * counts
    error = math.sqrt(len(sums) / (len(sums) - 1) * (rest**2).sum()) / counts.sum()
    assert found.perplexity_ratio_se == pytest.approx(ratio * error)
    assert found.model.perplexity_se is not None and found.perplexity_ratio_se < found.model.perplexity_se


def test_a_model_against_itself(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    done: list[int] = []
    with make() as lm:
        found = compare(lm, lm, path, context=64, stride=20, progress=done.append)
        assert (found.perplexity_ratio, found.kl_mean, found.kl_p999, found.top1_agreement) == (1, 0, 0, 1)
        assert (found.perplexity_ratio_se, found.kl_mean_se, found.top1_agreement_se) == (0, 0, 0)
        assert done == sorted(done) and done[-1] == found.model.bytes
        single = compare(lm, lm, path, context=64, limit=50)
        assert single.model.tokens == 50 and single.model.windows == 1
        assert single.kl_p999_se is None and single.model.perplexity_se is None


def test_what_cannot_be_compared_is_named(tmp_path: Path) -> None:
    path, empty = tmp_path / "text.txt", tmp_path / "empty.txt"
    path.write_text(TEXT)
    empty.write_text("")
    with make() as lm, make() as source:
        for error, part, file, options in (
            (ParameterError, "empty.txt", empty, {}),
            (MissingFileError, "none", tmp_path / "none", {}),
            (ParameterError, "context", path, {"context": 257}),
            (ParameterError, "stride", path, {"stride": 64}),
        ):
            with pytest.raises(error, match=part):
                compare(lm, source, file, **{"context": 64, **options})
        other = Tokenizer(metaspace(), config={"bos_token": "<s>"})
        with fake(other) as stranger, pytest.raises(TokenizerError, match="vocabularies differ"):
            compare(lm, stranger, path, context=64)
        inner = byte_level()
        inner.add_tokens(["once upon"])
        other = Tokenizer(inner)
        with fake(other, lm.engine.vocab_size) as stranger, pytest.raises(TokenizerError, match="once upon"):
            compare(lm, stranger, path, context=64)
        with make(bos=False) as stranger, pytest.raises(TokenizerError, match="begin a text"):
            compare(lm, stranger, path, context=64)
        with make(math.inf) as broken, pytest.raises(WeightError, match=r"shifted inf.*not finite"):
            compare(broken, source, path, context=64)
        with make(math.inf) as broken, pytest.raises(WeightError, match="not finite"):
            broken.perplexity(path, context=64)


def test_tokenizers_that_split_the_text_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("once  upon a time\n" * 9)
    from tokenizers import pre_tokenizers

    inner = byte_level()
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    other = Tokenizer(inner, config={"bos_token": "<|bos|>"})
    with make() as lm, fake(other) as source, pytest.raises(TokenizerError, match="split this text"):
        compare(lm, source, path, context=64)


def test_memory_is_a_few_rows(tmp_path: Path) -> None:
    """However long the window, rows are dropped before many more are asked for."""
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    with make(max_rows=8) as lm, make(0.1, max_rows=8) as source:
        lead: list[int] = []
        total = {"lm": 0, "source": 0}

        def count(name: str, engine: Any) -> None:
            inner = engine.step

            def step(items: list[Any], **limits: Any) -> list[Any]:
                total[name] += sum(len(ids) for _, ids, _, logits, _ in items if logits == "all")
                lead.append(abs(total["lm"] - total["source"]))
                return inner(items)

            engine.step = step

        count("lm", lm.engine)
        count("source", source.engine)
        compare(lm, source, path, context=200)
        assert max(lead) <= 16


def test_logits_are_computed_from_where_they_are_wanted() -> None:
    with make() as lm:
        ids = lm.tokenizer.encode(TEXT)[:100]
        engine: Any = lm.engine
        wanted: list[str] = []
        inner = engine.step
        engine.step = lambda items, **limits: (
            wanted.extend(item[3] for item in items) or inner(items, **limits)
        )
        parts = list(lm.iter_logits(ids, 70))
        assert parts[0][0] == 70 and sum(len(rows) for _, rows in parts) == 30
        assert np.array_equal(np.concatenate([rows for _, rows in parts]), lm.logits(ids)[70:])
        assert "none" in wanted
        # Left in the middle, nothing stays behind.
        rows = lm.iter_logits(ids)
        next(rows)
        rows.close()
        assert not engine.live


def test_standard_errors_are_those_of_repeated_samples() -> None:
    """Windows drawn anew many times: the scatter of the figure is the error that one sample states."""
    rng = np.random.default_rng(5)
    means, errors, tails, tail_errors = [], [], [], []
    for _ in range(400):
        counts = rng.integers(20, 60, 80)
        level = np.repeat(rng.normal(0, 0.3, 80), counts)  # what a window's tokens share
        values = np.exp(level + rng.normal(0, 0.5, counts.sum()))
        sums = [part.sum() for part in np.split(values, np.cumsum(counts)[:-1])]
        one, tail = mean(sums, counts), quantile(values, counts, 0.9)
        assert one.se is not None and tail.se is not None
        means.append(one.value)
        errors.append(one.se)
        tails.append(tail.value)
        tail_errors.append(tail.se)
    # The spread of 400 draws is itself known to 1 / sqrt(800), 3.5 %; five of those.
    assert np.median(errors) == pytest.approx(np.std(means), rel=0.18)
    assert np.median(tail_errors) == pytest.approx(np.std(tails), rel=0.18)


def test_quantiles_are_values_that_occur() -> None:
    assert quantile([3.0, 1.0, 2.0, 4.0], [2, 2], 0.5).value == 2
    assert quantile([3.0, 1.0, 2.0, 4.0], [2, 2], 0.51).value == 3
    assert quantile(np.arange(1000.0), [500, 500], 0.999).value == 998
    assert quantile([1.0], [1], 0.999).se is None


def test_of_too_few_values_a_quantile_has_no_error() -> None:
    values = np.random.default_rng(3).permutation(np.arange(3000.0))
    # The greatest of all: how far beyond it the quantile may lie, no value says.
    assert quantile(values[:999], [333] * 3, 0.999).se is None
    # Three are beyond it, all in one window: the error of the share reaches farther.
    assert quantile(np.arange(3000.0), [2990, 10], 0.999).se is None
    several = quantile(values, [100] * 30, 0.999)
    assert several.value == 2996 and several.se is not None and several.se > 0
    assert quantile(np.zeros(3000), [1000] * 3, 0.999).se == 0
