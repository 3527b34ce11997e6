"""The page of performance: what is published, and how it is told."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benches import performance, published, speculation

from runs import run


def comparison() -> dict[str, Any]:
    def measured(decode: float, **more: Any) -> dict[str, Any]:
        values = run(0, 0.0, decode=decode)
        return values | {"bandwidth": [1e9, 2e9], "others_cpu": 0.25, "date": "2026-01-02 03:04"} | more

    reading = {"bytes_per_token": 10**7, "decode_seconds": 0.010, "read_seconds": 0.005}

    return {
        "shape": "llama-tiny",
        "arguments": {
            "variants": ["pocketlm:4", "torchao:int4"],
            "threads": 2,
            "only_load": False,
            "prompt": [512],
            "after": [2048],
            "batch": [],
        },
        "machine": {"processor": "P", "cores": 2, "instruction_sets": ["avx2"]},
        "results": {"pocketlm 4": [measured(100.0, reading=reading)], "other": [measured(50.0)]},
        "versions": {"pocketlm 4": "1", "other": "2"},
        "not_run": {"mlx-lm 4": "wrong logits"},
    }


def test_the_page_says_what_was_measured_and_under_what() -> None:
    text = performance.section(comparison())
    assert "median 1.5 GB/s (1.0 to 2.0). Other processes took at most 25%" in text
    assert "rounds: 1; 2026-01-02." in text
    assert "| pocketlm 4 : other | 2.00 (2.00 to 2.00) |" in text
    # Reading takes 5 ms of the 10 that a token took; the other runtime does not say what it reads.
    assert "| pocketlm 4 | 10 | 5.00 | 10.00 | 5.00 | 50% |" in text
    assert "Versions: pocketlm 4: 1; other: 2." in text
    assert "\n\nNot run: mlx-lm 4: wrong logits.\n\nNot asked for: ctranslate2, llama-cpp-python, " in text
    assert "mlx-lm," not in text and "torchao" not in text  # one failed, the other was asked for
    assert text.startswith("### llama-tiny: speed, on a processor with AVX2 alone\n\nP, 2 cores")
    assert "times one text" not in text and "int8 peak" not in text


def test_the_page_names_runtimes_that_do_not_know_a_family() -> None:
    text = performance.section(comparison() | {"shape": "openelm-3b", "not_run": {}})
    assert "Without openelm models here: ctranslate2, " in text
    assert text.endswith("Not asked for: llama-cpp-python, mlx-lm.")


def test_the_page_counts_a_runtime_that_ran_apart_and_gives_no_ratio_to_it() -> None:
    values = comparison()
    (once,) = values["results"]["other"]
    values["results"] |= {"mlx-lm 8": [once | {"round": 7}]}
    text = performance.section(values | {"not_run": {}})
    assert "| mlx-lm 8 | 50.0" in text and ": mlx-lm 8" not in text
    assert "mlx-lm" not in text.rpartition("Not asked for:")[2]
    values["results"] = {"pocketlm 4": values["results"]["pocketlm 4"], "mlx-lm 8": [once | {"round": 7}]}
    assert "times better" not in performance.section(values)


def test_the_page_divides_the_time_of_a_prompt() -> None:
    # 10 us for each token of work, and 2 us for every 100 tokens before; products would take 8 us.
    figures = {
        f"{key}_{n}": value
        for n in (100, 400)
        for key, value in (("prefill", 1e6 / (10 + n / 50)), ("int8_peak_share", 8 / (10 + n / 50)))
    }
    lines = performance.unpeaked({"pocketlm 4": [run(0, 0.0, **figures)], "other": [run(0, 0.0)]}).split("\n")
    assert lines[2:] == [
        "| pocketlm 4 | 100 | 12.0 | 8.0 | 2.0 | 2.0 | 67% |",
        "| pocketlm 4 | 400 | 18.0 | 8.0 | 8.0 | 2.0 | 44% |",
    ]
    del figures["prefill_400"], figures["int8_peak_share_400"]
    one = performance.unpeaked({"pocketlm 4": [run(0, 0.0, **figures)]})
    assert one.endswith("| pocketlm 4 | 100 | 12.0 | 8.0 | - | 4.0 | 67% |")


@pytest.mark.parametrize(
    ("flags", "arguments", "more", "path", "title"),
    [
        (["avx2"], {}, {}, "avx2/llama-tiny-speed", "llama-tiny: speed, on a processor with AVX2 alone"),
        (
            ["avx2", "avx512f", "avx512_vnni", "avx512vbmi"],
            {"batch": [2]},
            {"isa": "avx2"},
            "avx512vbmi/llama-tiny-batches-held-avx2",
            "llama-tiny: batches, on a processor with AVX-512 VBMI, pocketlm held to avx2",
        ),
        (
            ["asimddp", "i8mm"],
            {"after": [2048, 16384]},
            {"title": "Long ago"},
            "neon-i8mm/llama-tiny-long",
            "Long ago, on a processor with NEON and int8 matrix products",
        ),
        (
            [],
            {"only_load": True},
            {},
            "other/llama-tiny-load",
            "llama-tiny: load to first token, on a processor with other instruction sets",
        ),
    ],
)
def test_sections_are_known_by_facts(
    flags: list[str], arguments: dict[str, Any], more: dict[str, Any], path: str, title: str
) -> None:
    values = comparison() | more
    values["machine"]["instruction_sets"] = flags
    values["arguments"] |= arguments
    where = published.Section.of(values)
    assert where.path(Path()) == Path(path)
    assert published.Section.at(Path(f"{path}.json")) == where
    assert where.title(values) == f"### {title}"


def test_results_replace_those_of_the_same_section(tmp_path: Path) -> None:
    values = comparison()
    (tmp_path / "avx2").mkdir()
    (tmp_path / "avx2" / "llama-tiny-speed.md").write_text("Old words.\n")
    assert performance.sections(tmp_path)["comparisons"] == (
        "### llama-tiny: speed, on a processor with AVX2 alone\n\n"
        "Figures of an older build, kept as they were written.\n\nOld words."
    )
    first = published.add(tmp_path, values, note="Said of it.")
    assert "\n\nSaid of it.\n\nP, 2 cores" in performance.sections(tmp_path)["comparisons"]
    values["machine"]["instruction_sets"] = ["avx2", "avx512_vnni"]
    other = published.add(tmp_path, values)
    values["machine"]["instruction_sets"] = ["avx2"]
    assert published.add(tmp_path, values) == first
    written = performance.sections(tmp_path)["comparisons"]
    assert "Said of it" not in written and "Old words" not in written
    assert [where.processor for where, _ in published.everything(tmp_path)] == ["avx512", "avx2"]
    assert sorted(tmp_path.rglob("*.*")) == sorted([first, other])
    assert performance.section(json.loads(first.read_text())) == performance.section(values)
    (tmp_path / "avx2" / "something.json").write_text("{}")
    with pytest.raises(ValueError, match="something"):
        published.everything(tmp_path)


def test_what_guesses_gain_is_measured_and_published(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file, options = tmp_path / "found.json", ["--rounds=1", "--tokens=12", "--threads=1", "--name=a.b-1"]
    monkeypatch.setattr(sys, "argv", ["speculation.py", str(source), f"--json={file}", *options])
    speculation.main()
    assert "4 texts of 12 tokens" in capsys.readouterr().out
    values = json.loads(file.read_text())
    where = published.Section.of(values)
    assert (where.subject, where.kind) == ("a.b-1", "speculation")
    path = published.add(tmp_path / "docs", values, note="Said of it.")
    assert published.Section.at(path) == where
    figures = {"ratio": 1.5, "quartiles": [1.25, 2.0], "tokens_per_second": [100.0, 150.0], "proposed": 10}
    values["workloads"] = {"edit": figures | {"accepted": 9, "texts": 4, "others_cpu": 0.25}}
    published.add(tmp_path / "docs", values, note="Said of it.")
    text = performance.sections(tmp_path / "docs")["speculation"]
    row = f"| a.b-1 | {where.processor} | edit | 100.0 | 150.0 | 1.50 (1.25 to 2.00) | 9 of 10 | 4 | 25% |"
    assert row in text and "rounds: 1, tokens: 12, guesses: 8" in text and text.endswith("Said of it.")


def test_the_page_is_what_the_committed_results_give() -> None:
    page = performance.PAGE.read_text()
    assert performance.filled(page, performance.sections(published.FOLDER)) == page, (
        "python -m benches.performance"
    )


def test_the_page_says_what_batches_gain() -> None:
    values = comparison()
    values["arguments"]["batch"] = [8]
    values["results"]["pocketlm 4"][0]["figures"]["decode_batch_8"] = 450.0
    text = performance.section(values)
    assert "### llama-tiny: batches" in text
    assert "| times one text | 8 texts |" in text
    assert "| pocketlm 4 | 4.50 (4.50 to 4.50) |\n| other | - |" in text


def test_only_what_stands_between_marks_is_replaced() -> None:
    page = "a\n<!-- x -->\nold\n<!-- /x -->\nb\n"
    once = performance.filled(page, {"x": r"new \1"})
    assert once == "a\n<!-- x -->\n\nnew \\1\n\n<!-- /x -->\nb\n"
    assert performance.filled(once, {"x": r"new \1"}) == once
    with pytest.raises(ValueError, match="no marks for 'y'"):
        performance.filled(page, {"y": ""})
