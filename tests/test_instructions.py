"""Decoding executes as many instructions as recorded, within 2 %, which no clock on a shared machine could
tell."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benches import disassembly, instructions, tracing


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """What this machine executes. In a process of its own: stepping forks before it loads a program."""
    command = [sys.executable, "-m", "benches.instructions", "--json"]
    done = subprocess.run(command, cwd=instructions.ROOT, capture_output=True, text=True, check=False)
    if done.stderr.startswith("instructions cannot be counted"):
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    values: dict[str, Any] = json.loads(done.stdout)
    return values


@pytest.mark.parametrize("level", json.loads(instructions.RECORD.read_text())["levels"])
def test_counts_are_as_recorded(found: dict[str, Any], level: str) -> None:
    known = json.loads(instructions.RECORD.read_text())["levels"][level]
    if level not in found["levels"]:
        pytest.skip(f"{level}: not on this machine, so its instructions were not counted")
    here = found["levels"][level]
    if here["compiler"] != known["compiler"]:
        pytest.skip(f"{level}: recorded with {known['compiler']}, not {here['compiler']} (make instructions)")
    known_here = instructions.comparable(here, known["counts"])
    said = instructions.differences(here["counts"], known_here)
    assert not said, "\n".join([*said, "if that is meant, `make instructions` records it"])
    if unknown := [name for name, count in known_here.items() if count is None]:
        pytest.skip(f"{level}: not compared, since recorded before a change: {', '.join(unknown)}")


def test_levels_of_this_machine_are_recorded(found: dict[str, Any]) -> None:
    known = json.loads(instructions.RECORD.read_text())
    missing = set(found["levels"]) - set(known["levels"])
    assert missing <= {"avx512amx"}, f"not recorded: {missing}"  # its tiles are no vectors to be passed over
    assert set(known["levels"]) <= set(instructions.LEVELS)
    assert found["lines"] == known["lines"]


def test_products_of_a_foreign_level_are_compared_and_steps_are_not() -> None:
    recorded = {"p4 rows=1": 5, "decode step": 7}
    foreign = {"counts": {"p4 rows=1": 5}, "foreign": True}
    assert instructions.comparable(foreign, recorded) == {"p4 rows=1": 5}
    assert instructions.comparable(foreign | {"foreign": False}, recorded) == recorded


needs_decoder = pytest.mark.skipif(
    importlib.util.find_spec("iced_x86") is None,
    reason="iced-x86 is not installed, which is so but on x86-64",
)


@needs_decoder
@pytest.mark.parametrize(
    ("code", "length"),
    [
        ("c5f877", 3),  # vzeroupper
        ("c5f8ae5424fc", 6),  # vldmxcsr with SIB and a byte of displacement
        ("c5f8905424fc", 6),  # kmovw k2, [rsp - 4]
        ("c4e2791845f0", 6),  # vbroadcastss xmm0, [rbp - 16]
        ("c4e37d39c101", 6),  # vextracti128 xmm1, ymm0, 1
        ("c5fd6f0511111111", 8),  # vmovdqa ymm0, [rip + ...]
        ("c5fd70c1b1", 5),  # vpshufd ymm0, ymm1, 0xb1
        ("c4e26d500c01", 6),  # vpdpbusd ymm1, ymm2, [rcx + rax], of AVX-VNNI
        ("62f17c481000", 6),  # vmovups zmm0, [rax]
        ("62f17c48104001", 7),  # vmovups zmm0, [rax + 64]
        ("62f17c4810800a000000", 10),  # vmovups zmm0, [rax + 10]
        ("62f17c4810048500000000", 11),  # vmovups zmm0, [4 * rax]
        ("62f26d5850440801", 8),  # vpdpbusd zmm0, zmm2, [rax + rcx + 4]{1to16}
        ("62f17d4872d004", 7),  # vpsrld zmm0, zmm0, 4
        ("62f3fd483bc101", 7),  # vextracti64x4 ymm1, zmm0, 1
        ("62f27d4818c0", 6),  # vbroadcastss zmm0, xmm0
    ],
)
def test_vector_instructions_are_passed_over(code: str, length: int) -> None:
    assert disassembly.passable(bytes.fromhex(code + "90" * 15)) == length
    assert disassembly.passable(bytes.fromhex(code + code + "c5f898c1")) == 2 * length
    assert disassembly.passable(bytes.fromhex(code + code)[:-1]) == length  # the second one is cut off
    store = "62f17c481100"  # vmovups [rax], zmm0: passed over where the processor lacks it, else executed
    assert disassembly.passable(bytes.fromhex(store + code)) == 6 + length
    assert disassembly.passable(bytes.fromhex(code + store)) == length


@needs_decoder
@pytest.mark.parametrize("code", ["0f0b", "90", "e800000000", "c4e87910c0", "0f58c1"])
def test_what_is_no_vector_instruction_is_not_passed_over(code: str) -> None:
    # An undefined instruction, a no-op, a call; a map of opcodes that there is not; addps (no VEX).
    assert disassembly.passable(bytes.fromhex(code + "90" * 15)) == 0


@needs_decoder
@pytest.mark.parametrize("code", ["c5f898c1", "c5fb93c1", "c5f850c1", "c4e279f7c0", "c4e37916c001"])
def test_what_may_decide_about_the_way_is_not_passed_over(code: str) -> None:
    # kortestw k0, k1; kmovd eax, k1; vmovmskps; shlx (BMI); vpextrd eax, xmm0, 1.
    assert disassembly.passable(bytes.fromhex(code + "90" * 15)) == 0


@needs_decoder
@pytest.mark.parametrize("branch", ["7500", "eb00", "e800000000", "ff10", "c3", "cc", "e2fe", "0f0b"])
@pytest.mark.parametrize("before", [0, 1, 255, 1000])
def test_a_run_ends_where_it_may_go_elsewhere(branch: str, before: int) -> None:
    # jne, jmp, call, call through memory, ret, int3, loop, an undefined instruction; before it no-ops and a
    # system call, which comes back.
    code = bytes.fromhex("90" * before + "0f05" + branch + "90" * 300)
    run = disassembly.run_from(0x1000, lambda at, size: code[at - 0x1000 :][:size])
    assert run == disassembly.Run(before + 2, 0x1000 + before + 2)


@needs_decoder
def test_instructions_that_two_pieces_of_code_share_count_once() -> None:
    load = bytes.fromhex("62f17c4810048500000000")  # eleven bytes, which no power of two is a multiple of
    code = load * 100 + b"\xc3"
    run = disassembly.run_from(7, lambda at, size: code[at - 7 :][:size])
    assert run == disassembly.Run(101, 7 + 1100)
    with pytest.raises(ValueError, match="0x7: no instruction"):
        disassembly.run_from(7, lambda _at, size: b"\x06" * size)
    with pytest.raises(ValueError, match="0x8: no instruction"):  # the end of what can be read
        disassembly.run_from(7, lambda at, _size: b"\x90" if at == 7 else b"")


def test_more_and_fewer_instructions_are_told_and_so_are_names() -> None:
    recorded = {"a": 1000, "b": 1000, "c": 1000, "gone": 1}
    said = instructions.differences({"a": 1021, "b": 979, "c": 1020, "new": 1}, recorded)
    assert said == [
        "new: not recorded",
        "gone: recorded, but no piece of work has that name",
        "a: 1,021 instructions, recorded 1,000 (+2.1%)",
        "b: 979 instructions, recorded 1,000 (-2.1%)",
    ]


def test_steps_counted_elsewhere_are_forgotten_once_steps_have_changed() -> None:
    elsewhere = {"compiler": "c", "counts": {"p4 rows=1": 5, "decode step": 700}}
    known = {"avx2": {"counts": {"p4 rows=1": 5, "decode step": 1000}}, "avx512": elsewhere}

    def steps(here: int) -> instructions.Recorded:
        found = {
            "avx512vbmi": {"counts": {"decode step": None}, "foreign": True},
            "avx2": {"counts": {"p4 rows=1": 9, "decode step": here}, "foreign": False},
            "avx512": {"counts": {"p4 rows=1": 5}, "foreign": True},
        }
        return instructions.foreign_steps(elsewhere, known, found)

    assert steps(1001) == {"decode step": 700}
    assert steps(990) == steps(1010) == {"decode step": None}
    assert instructions.differences({"decode step": 9}, steps(990)) == []
    assert "| decode step, in all | 9 | - |" in instructions.rates_table(
        {"a": {"decode step": 9}, "b": steps(990)}, {}
    )


def test_rates_are_of_the_difference_of_two_widths() -> None:
    counts = {"p4 rows=1 cols=64": 150, "p4 rows=1 cols=128": 230, "decode step": 7}
    lines = {"p4 rows=1 cols=64": 8, "p4 rows=1 cols=128": 16, "decode step": 0}
    assert instructions.rates(counts, lines) == {"p4 rows=1": (10.0, 70.0)}
    assert "| p4 rows=1 | 10.00 + 70 | - |" in instructions.rates_table({"a": counts, "b": {}}, lines)


def test_calls_are_cut_out_of_a_trace() -> None:
    # A call at 0x10 of the function at 0x40, which calls one at 0x80; then another call from 0x14.
    steps = [0x0C, 0x10, 0x40, 0x44, 0x80, 0x84, 0x48, 0x14, 0x40, 0x44, 0x48, 0x18]
    trace = [b"Trace 0: 0x7f00 [00000000/%016x/00000051/ff200000] name\n" % at for at in steps]
    assert instructions._calls(iter([b"IN: name\n", *trace]), 0x40) == [5, 3]
    with pytest.raises(ValueError, match="ends within a call"):
        instructions._calls(iter(trace[:-1]), 0x40)


def test_a_program_that_fails_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing.platform, "machine", lambda: "riscv64")
    with pytest.raises(disassembly.CannotCountError, match="not linux on riscv64"):
        tracing.Process(["/bin/true"], {})
