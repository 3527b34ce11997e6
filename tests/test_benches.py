"""The benchmarks' own arithmetic: kept runs, ratios, tables, adapters that load without their runtimes."""

from __future__ import annotations

import argparse
import ctypes
import json
import mmap
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benches import (
    adapters,
    allocation,
    environment,
    goals,
    machine,
    norm,
    peers,
    prediction,
    report,
)
from benches.adapters.base import group, whole
from benches.adapters.worker import rate
from benches.results import Results

from pocketlm.kinds import BITS
from pocketlm.palettize.recipe import Candidate
from runs import run

SETTINGS = {"threads": 2}


def test_runs_are_found_again_unless_anything_differs(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    kept = Results(path, SETTINGS, again=False)
    kept.add("run", "a:4", "1.0", run(0, 1.0, decode=5.0), 0)
    kept.add("run", "a:4", "1.0", run(2, 3.0, decode=7.0), 2)
    kept.add("run", "a:4", "1.0", run(0, 2.0, decode=6.0), 0)
    kept.add("check", "a:4", "1.0", {"found": {"cosine": 1.0}})
    again = Results(path, SETTINGS, again=False)
    assert [r["figures"]["decode"] for r in again.runs("a:4", "1.0")] == [6.0, 7.0]
    assert again.find("run", "a:4", "1.0", 1) is None
    assert again.runs("a:4", "1.1") == again.runs("b:4", "1.0") == []
    other = Results(path, {"threads": 1}, again=False)
    assert other.runs("a:4", "1.0") == []
    assert other.find("check", "a:4", "1.0")  # outputs do not depend on the settings
    assert Results(path, SETTINGS, again=True).runs("a:4", "1.0") == []
    assert len(path.read_text().splitlines()) == 4


def test_why_something_did_not_run_is_kept_until_it_does(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    kept = Results(path, SETTINGS, again=False)
    for name in "abcd":
        kept.add("refused", name, "1.0", {"reason": f"{name} is no such model"})
    kept.add("check", "b", "1.0", {"found": {}})
    kept.add("failed", "b", "1.0", {"reason": "b stopped"})
    kept.add("check", "b", "1.0", {"found": {}})  # says nothing of what happens later
    kept.add("failed", "c", "1.0", {"reason": "c stopped"})
    kept.add("run", "c", "1.1", run(0, 1.0), 0)
    kept.add("check", "d", "1.0", {"found": {}})
    expected = {"a": "a is no such model", "b": "b stopped"}
    assert kept.reasons() == Results(path, SETTINGS, again=False).reasons() == expected
    assert Results(path, {"threads": 1}, again=False).reasons().keys() == {"a", "c"}
    assert Results(path, SETTINGS, again=True).reasons() == {}


@pytest.mark.parametrize(
    ("options", "isa", "more"),
    [
        ("", "", ""),
        ("--repeats 7 --again --threads 2 --prompt 512 2048", "", ""),
        ("--only-load", "", "-load"),
        ("--batch 2 8", "", "-batch-2-8"),
        ("--prompt 512 --after 2048 16384", "", "-prompt-512-after-2048-16384"),
        ("--threads 1 --generate 32 --after", "avx2", "-threads-1-after-generate-32-held-avx2"),
    ],
)
def test_files_are_named_after_what_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, options: str, isa: str, more: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["peers.py", "pocketlm:4", *options.split()])
    assert peers.stem("tiny-8192", peers.parse(), isa) == f"peers-tiny-8192{more}"


@pytest.mark.parametrize(
    ("variants", "variable", "isa"),
    [
        ("pocketlm:4 llama_cpp_avx2:Q4_0", "", ""),
        ("pocketlm_avx2:4 llama_cpp_avx2:Q4_0", "", "avx2"),
        ("pocketlm:4 llama_cpp:Q4_0", "avx512", "avx512"),
        ("pocketlm:4 pocketlm_avx2:4", "", "best-avx2"),
        ("llama_cpp:Q4_0", "avx2", ""),
    ],
)
def test_what_holds_pocketlm_back_is_in_the_name(
    monkeypatch: pytest.MonkeyPatch, variants: str, variable: str, isa: str
) -> None:
    monkeypatch.setenv("POCKETLM_ISA", variable)
    made = [peers.Variant(spec, argparse.Namespace()) for spec in variants.split()]
    assert peers.held(made) == isa


@pytest.mark.parametrize("spec", ["nope:4", "pocketlm:zz", "pocketlm", ":4"])
def test_what_is_unknown_is_said_before_any_work(monkeypatch: pytest.MonkeyPatch, spec: str) -> None:
    def work(args: argparse.Namespace) -> Path:
        raise AssertionError("began")

    monkeypatch.setattr(peers, "make_checkpoint", work)
    monkeypatch.setattr(sys, "argv", ["peers.py", "pocketlm:4", spec])
    with pytest.raises(SystemExit, match=r"no such runtime; there are|has the forms 16, 8, 4"):
        peers.main()


def test_reasons_reach_the_published_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Some(peers.Variant):
        def prepare(self, checkpoint: Path) -> None:
            self.version = "1"

        def check(self, expected: object) -> dict[str, float]:
            if self.name == "mlx_lm":
                raise environment.CannotRunError("wrong logits")
            return {"cosine": 1.0}

        def measure(self, seed: int) -> dict[str, Any]:
            if self.name == "torchao":
                raise environment.CannotRunError("measure failed")
            return run(seed, 0.0, decode=9.0) | {"bandwidth": [1.0, 2.0], "others_cpu": 0.0}

    def found(line: str) -> dict[str, Any]:
        monkeypatch.setattr(
            sys, "argv", ["peers.py", "--out", str(tmp_path), "--repeats", "1", *line.split()]
        )
        peers.main()
        values = json.loads((tmp_path / f"peers-{tmp_path.name}.json").read_text())
        assert values["results"].keys() == {"pocketlm 4"}
        return dict(values["not_run"])

    monkeypatch.setattr(peers, "Variant", Some)
    monkeypatch.setattr(peers, "make_checkpoint", lambda args: tmp_path)
    monkeypatch.setattr(peers, "oracle", lambda checkpoint: None)
    monkeypatch.setattr(report, "picture", lambda *_: None)
    everything = {"mlx-lm 4": "wrong logits", "torch + torchao int4": "measure failed"}
    assert found("pocketlm:4 mlx_lm:4 torchao:int4") == everything
    for line in ("pocketlm:4", "--kept --no-check pocketlm:4 torchao:int4 mlx_lm:4", "--kept pocketlm:4"):
        assert found(line) == everything, line


def test_predictions_of_another_build_are_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    args = argparse.Namespace(
        source=tmp_path / "src", out=tmp_path, only=None, threads=1, rounds=1, repeats=1, turns=1
    )
    places = [prediction.Bench(args).out]
    (tmp_path / "core").write_bytes(b"another build")
    for owner, name, value in (
        (prediction, "ARITHMETIC", -1),
        (prediction._core, "__file__", str(tmp_path / "core")),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, value)
            places.append(prediction.Bench(args).out)
    assert len(set(places)) == 3 and prediction.Bench(args).out == places[0]


def test_ratios_are_of_neighbours_in_time_only() -> None:
    ours = [run(0, 0.0, decode=10.0, load_seconds=1.0), run(1, 100.0, decode=30.0, load_seconds=1.0)]
    theirs = [run(1, 150.0, decode=10.0, load_seconds=4.0), run(0, 9000.0, decode=1.0, load_seconds=4.0)]
    found = report.ratios(ours, theirs)
    assert found == {
        "decode": {"median": 3.0, "min": 3.0, "max": 3.0},
        "load_seconds": {"median": 4.0, "min": 4.0, "max": 4.0},
    }
    assert report.ratios(ours[:1], theirs[:1]) == {}


def test_tables_have_room_for_what_only_some_can_do() -> None:
    results = {
        "other 4": [run(0, 0.0, decode=10.0)],
        "pocketlm 4": [run(0, 0.0, decode=20.0, int8_peak_share_512=0.7, bandwidth_share=0.9)],
    }
    lines = report.text(results, baseline="pocketlm").splitlines()
    assert lines[0] == "| runtime | decode, tok/s | int8 peak share 512 | bandwidth share |"
    assert lines[2] == "| other 4 | 10.0 ±0% | - | - |"
    assert lines[3] == "| pocketlm 4 | 20.0 ±0% | 70% (70% to 70%) | 90% (90% to 90%) |"
    assert lines[-1] == "| pocketlm 4 : other 4 | 2.00 (2.00 to 2.00) |"


def test_every_adapter_is_read_without_its_runtime() -> None:
    for name in adapters.names():
        peer = adapters.adapter(name)
        assert peer.title
        assert peer.forms
        assert peer.exact <= set(peer.forms)
        for other in (peer.forms_of, peer.converts_in, peer.runs_in):
            assert not other or adapters.adapter(other)


def test_an_installation_that_failed_is_not_tried_again(tmp_path: Path) -> None:
    peer = adapters.adapter("ctranslate2")
    (tmp_path / "ctranslate2").mkdir()
    (tmp_path / "ctranslate2" / "failed.txt").write_text("".join(f"{p}\n" for p in peer.packages))
    with pytest.raises(environment.CannotRunError, match="installation failed"):
        environment.python(peer, "ctranslate2", tmp_path)


@pytest.mark.parametrize(("width", "size"), [(2048, 64), (288, 32), (3072, 64)])
def test_groups_divide_the_width(tmp_path: Path, width: int, size: int) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": width}))
    assert group(tmp_path, 64) == size


def test_what_was_broken_off_is_made_again(tmp_path: Path) -> None:
    target = tmp_path / "model"

    def fails(partial: Path) -> None:
        partial.mkdir()
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        whole(target, fails)
    assert not target.exists()
    assert whole(target, lambda partial: partial.mkdir()) == target
    assert whole(target, fails) == target


@pytest.mark.parametrize("bits", [2, 2.5, 3, 3.7, 8])
def test_even_bits_keep_to_their_average(bits: float) -> None:
    known = [Candidate("embed", (99, 9), False, True, ("embed",))]
    known += [Candidate(f"t{at}", (16, 1 + at % 3), False, False, (f"layers.{at}.x",)) for at in range(40)]
    recipe = allocation.even(known, bits)
    assert list(recipe) == [tensor.name for tensor in known] and recipe["embed"] == "p8"
    for count in (10, 20, 41):  # all along, not only in the end
        inner = known[1:count]
        used = sum(BITS[recipe[t.name]] * t.elements for t in inner) / sum(t.elements for t in inner)
        assert bits - 0.3 <= used <= bits


def test_allocations_are_summed_up() -> None:
    assert allocation.spearman([1, 5, 2, 9], [10, 30, 20, 40]) == pytest.approx(1)
    assert allocation.spearman([1, 5, 2, 9], [4, 2, 3, 1]) == pytest.approx(-1)
    shares = {"even": 4.0, "2 and 4": 2.0, "free": 1.0}
    seeds: list[dict[str, Any]] = [
        {
            "seed": seed,
            "models": [
                {
                    "budget": b,
                    "way": w,
                    "bits": b,
                    "predicted": 1.0,
                    "judged": 1.0,
                    "held_out": k * (1 + seed),
                }
                for b in allocation.BUDGETS
                for w, k in shares.items()
            ],
            "random": [{"predicted": i, "judged": i * i, "held_out": -i} for i in range(1, 6)],
        }
        for seed in range(3)
    ]
    found = allocation.summary(seeds)
    assert found["spearman"] == {"judged": pytest.approx([1] * 3), "held_out": pytest.approx([-1] * 3)}
    for row in found["rows"]:
        assert (row["times_free"], row["times_free_se"]) == (shares[row["way"]], 0)
        assert row["kl"] == 2 * shares[row["way"]]
        assert row["kl_se"] == pytest.approx(shares[row["way"]] / 3**0.5)
    assert "| 3.5 | free | 3.500 | 2.0000 ± 0.5774 | 1.00 ± 0.00 |" in allocation.table(found)
    assert "±" not in allocation.table(allocation.summary(seeds[:1]))


def test_tokens_that_came_with_the_first_do_not_count_as_decoded() -> None:
    assert rate([1.0, 2.0, 3.0]) == 1.0
    assert rate([2.0, 2.0, 3.0]) == 1.0  # two tokens in the first piece of text, then one a second
    assert rate([1.0, 3.0, 3.0]) == 1.0  # two together at the end
    assert rate([1.0]) == rate([1.0, 1.0]) == 0.0


def test_the_share_of_normalisations_says_what_was_measured_and_what_computed() -> None:
    # A step of 10 ms, of which 1 ms are the engine's norms; 3 ms of naive ones would make it 12.
    assert norm.text("naive", 0.010, 0.001, 113, 0.003).split("\n") == [
        "measured: a decode step of the engine, 10.00 ms; its 113 normalisations alone, on one thread with "
        "data in cache, 1000 us fused, 3000 us naive",
        "computed: a step with them naive, 12.00 ms, were nothing else changed",
        "share of the naive normalisations: 25.0%",
    ]
    fused = norm.text("fused", 0.010, 0.001, 113, 0.001)
    assert fused.endswith("us fused\nshare of the fused normalisations: 10.0%")


def test_the_allocation_bench_runs_through(source: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n".join(" ".join(f"w{i * 7 % (90 + line)}" for i in range(200)) for line in range(40)))
    args = argparse.Namespace(
        model=source, train=text, text=text, threads=1, recipes=3, out=tmp_path / "out", progress=False
    )
    seeds = [allocation.Seed(args, seed).run() for seed in range(2)]
    found = allocation.summary(seeds)
    assert all(0 < row["kl"] < 1 and row["bits"] <= row["budget"] for row in found["rows"])
    assert allocation.Seed(args, 0).run() == seeds[0]  # from what was kept
    allocation.picture(found, seeds, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").exists()


def test_predicted_ratios_meet_those_of_turns() -> None:
    def one(base: float, ratio: float, *measured: float) -> dict[str, Any]:
        return {
            "what": {
                "base": {"decode": base, "prefill": 1.0},
                "bytes": {"predicted": 7, "measured": 8},
                "apart": [0.01, 0.02],
                "predicted": {"decode": ratio, "prefill": 1.0},
                "measured": {"decode": list(measured), "prefill": [1.0, 1.0]},
            },
        }

    rounds = [one(6.0, 0.5, 0.4, 0.5, 0.6), one(5.0, 0.7, 0.45), one(7.0, 0.4, 0.55, 0.9, 0.3)]
    (entry,) = prediction.results(rounds, ["what", "never measured"])
    assert entry["size"] == {"predicted": 7, "measured": 8} and entry["apart"] == [0.01] * 3 + [0.02] * 3
    decode = entry["decode"]
    assert decode["predicted"] == [0.5, 0.4, 0.7] and decode["measured"] == [0.5, 0.4, 0.6]
    assert decode["seconds"] == {"predicted": 2.5, "measured": 2.5} and decode["off"] == 0
    assert entry["prefill"]["off"] == 0


def test_models_run_in_turn(tmp_path: Path) -> None:
    args = argparse.Namespace(
        source=prediction.SOURCE,
        out=tmp_path,
        only=["ffn at 2 bits"],
        threads=1,
        rounds=1,
        repeats=1,
        turns=2,
    )
    bench = prediction.Bench(args)
    bench.models()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prediction, "TURN_SECONDS", 0.0)
        base = argparse.Namespace(context=70, prompt=300)
        found = bench._in_turn(base, bench.path("ffn at 2 bits"))
    assert set(found) == set(prediction.STEPS)
    assert all(len(ratios) == 2 and min(ratios) > 0 for ratios in found.values())


def test_goals_are_judged_by_the_best_of_those_that_ran() -> None:
    runs = {
        "pocketlm:4": [run(i, float(i), decode=60.0 + i, share=0.9, decode_batch_8=250.0) for i in range(3)],
        "a:4": [run(i, i + 0.5, decode=50.0) for i in range(3)],
        "b:4": [run(i, i + 0.5, decode=55.0) for i in range(3)],
    }
    found = goals.Goal("pocketlm:4", "decode", 1.2, ("a:4", "b:4", "absent:4")).found(runs)
    assert found == {"median": 61 / 55, "min": 60 / 55, "max": 62 / 55}
    assert goals.Goal("pocketlm:4", "decode", 1.2, ("absent:4",)).found(runs) is None
    assert goals.Goal("absent:4", "decode", 1.2, ("a:4",)).found(runs) is None
    assert goals.Goal("pocketlm:4", "prefill_512", 1.2, ("a:4",)).found(runs) is None
    assert goals.Goal("a:4", "decode_batch_8", 5.0, over="decode").found(runs) is None
    over = goals.Goal("pocketlm:4", "decode_batch_8", 5.0, over="decode").found(runs)
    assert over == {"median": 250 / 61, "min": 250 / 62, "max": 250 / 60}
    share = goals.Goal("pocketlm:4", "share", 0.88).found(runs)
    assert share == {"median": 0.9, "min": 0.9, "max": 0.9}
    rows = [goals.row("g", "one", 1.2, found, []), goals.row("g", "two", 0.88, share, ["x: no compiler"])]
    rows.append(goals.row("g", "three", 1.0, None, ["x: no compiler", "y: left out"]))
    assert [row["reached"] for row in rows] == [False, True, None]
    lines = goals.table(rows).splitlines()
    assert [line.split(" | ")[3].rstrip(" |") for line in lines[2:5]] == ["no", "yes", "not measured"]
    assert lines[6:] == ["g: without x: no compiler", "g: without y: left out"]


@pytest.mark.parametrize("name", goals.GROUPS)
def test_comparisons_measure_what_their_goals_are_about(name: str) -> None:
    group = goals.GROUPS[name]
    args = peers.parse([*group.variants(), *group.options.split()])
    assert args.variants == group.variants()
    for spec in args.variants:
        peers.Variant(spec, args)  # else an unknown runtime or form
    measured = {"peak_bytes"} if args.only_load else {"peak_bytes", "decode", "bandwidth_share"}
    measured |= {"load_to_first_token_seconds"} | {f"decode_batch_{rows}" for rows in args.batch}
    measured |= {f"{key}_{n}" for key in ("prefill", "int8_peak_share") for n in args.prompt}
    measured |= {f"decode_after_{n}" for n in args.after}
    for goal in group.goals:
        assert {goal.figure, goal.over or goal.figure} <= measured
        assert not (goal.beside and goal.over) and goal.variant.startswith("pocketlm")


def test_goals_are_measured_group_by_group(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[list[str]] = []

    def compare(args: argparse.Namespace) -> tuple[dict[str, Any], dict[str, str]]:
        asked.append(args.variants)
        ours = [run(0, 0.0, load_to_first_token_seconds=0.1, peak_bytes=5.0)]
        theirs = [run(0, 1.0, load_to_first_token_seconds=0.9, peak_bytes=11.0)]
        return {"pocketlm:4": ours, "llama_cpp:Q4_0": theirs}, {"llama_cpp:Q4_K_M": "no compiler"}

    monkeypatch.setattr(peers, "compare", compare)
    monkeypatch.setattr(goals, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["goals", "load", "--repeats", "1", "--without", "mistralrs"])
    goals.main()
    assert asked == [["pocketlm:4", "llama_cpp:Q4_0", "llama_cpp:Q4_K_M"]]
    said = capsys.readouterr().out
    assert "9.00 (9.00 to 9.00) | no |" in said and "2.20 (2.20 to 2.20) | yes |" in said
    assert "- | not measured |" in said and "load: without llama_cpp:Q4_K_M: no compiler" in said
    kept = json.loads((tmp_path / "benches" / "out" / "goals.json").read_text())
    assert [goal["reached"] for goal in kept["goals"]] == [False, None, True]
    for wrong in (["nothing"], ["--repeats", "0"]):
        monkeypatch.setattr(sys, "argv", ["goals", *wrong])
        with pytest.raises(SystemExit):
            goals.main()


def resident(path: Path) -> float:
    """The share of a file's pages that are in the page cache."""
    size = path.stat().st_size
    pages = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        assert not ctypes.CDLL(None).mincore(ctypes.c_void_p(address), ctypes.c_size_t(size), pages)
    return sum(page & 1 for page in pages) / len(pages)


def test_files_are_dropped_and_read_in_folders_too(tmp_path: Path) -> None:
    content = bytes(range(256)) * (12 << 10)  # 3 MiB: more than one large page
    large = tmp_path / "sub" / "large"
    large.parent.mkdir()
    large.write_bytes(content)
    (tmp_path / "empty").write_bytes(b"")
    assert machine.files_of(tmp_path) == [tmp_path / "empty", large]
    assert machine.files_of(tmp_path / "empty") == [tmp_path / "empty"]
    machine.drop_files(tmp_path)
    dropped = resident(large) if sys.platform == "linux" else None
    machine.read_files(tmp_path)
    if dropped is not None:
        assert resident(large) == 1
    assert large.read_bytes() == content
    if dropped is None or dropped == 1:
        pytest.skip("not compared: no Linux, or a file system in memory, which drops nothing")
    assert dropped == 0
