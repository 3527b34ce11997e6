"""Counts the instructions of small fixed pieces of decoding, and compares them with recorded counts.

    python -m benches.instructions [--record] [--arm]

Prints instructions per 64-byte line of codes for every kind and instruction set, and what differs from
``tests/instructions.json`` by more than 2 %. Counts do not depend on who else uses the machine, so a test may
compare them; they are no times, and say nothing of memory. The pieces are those of
``rust/engine/examples/instruction_work.rs``. Products of AVX-512 and AVX-VNNI are counted on processors
without them too, where their instructions are passed over. NEON's are counted under qemu, an instruction at a
time.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benches.disassembly import CannotCountError
from benches.report import table
from benches.tracing import Process

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "tests" / "instructions.json"
TOLERANCE = 0.02
CHANGED = 0.005  # beyond which a step is another one, so that what was counted of it elsewhere is out of date
EXAMPLE = ["build", "--release", "--quiet", "-p", "pocketlm-engine", "--example", "instruction_work"]
LEVELS = ("avx2", "avx2vnni", "avx512", "avx512vbmi", "avx512amx", "neon", "neon-dotprod", "neon-i8mm")
FOREIGN = (
    "avx2vnni",
    "avx512",
    "avx512vbmi",
)  # levels whose products are counted where the processor lacks them
ARM = str(ROOT / "tools" / "arm.sh")
# And a processor that has no more; none of its name has int8 matrix products and no SVE.
ARM_LEVELS = {"neon": "cortex-a72", "neon-dotprod": "neoverse-n1", "neon-i8mm": "max,sve=off"}
PC = re.compile(rb"^Trace \d+: \S+ \[[0-9a-f]+/([0-9a-f]+)/")

Counts = dict[str, int]  # by name of the piece
Recorded = Mapping[str, int | None]  # None: of a build before a change, on a machine that could not count it
Lines = dict[str, int]  # 64-byte lines of codes that it reads


def build() -> Path:
    """Compiles the pieces for this machine.

    Raises:
        CannotCountError: there is no cargo.
    """
    try:
        subprocess.run(["cargo", *EXAMPLE], cwd=ROOT, check=True)
    except FileNotFoundError:
        raise CannotCountError("there is no cargo") from None
    target = os.environ.get("CARGO_TARGET_DIR", "target")
    return ROOT / target / "release" / "examples" / "instruction_work"


def compiler(prefix: Sequence[str] = ()) -> str:
    """The compiler's version, on which counts depend."""
    command = [*prefix, "sh", "-c", "${RUSTC:-rustc} --version"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def levels(program: Path) -> list[str]:
    """This machine's instruction sets that have vectors, by the names of ``POCKETLM_ISA``."""
    done = subprocess.run([program, "--levels"], capture_output=True, text=True, check=True)
    return [name for name in done.stdout.split() if name != "scalar"]


def _describe(output: str) -> tuple[int, Lines]:
    """The address of the function that every piece runs in, and the pieces in order."""
    address, lines = 0, {}
    for line in output.splitlines():
        word, _, rest = line.partition(" ")
        if word == "counted":
            address = int(rest, 16)
        elif word == "work":
            count, _, name = rest.partition(" ")
            lines[name] = int(count)
    return address, lines


def _paired(names: Lines, counts: list[int]) -> tuple[Counts, Lines]:
    if len(names) != len(counts):
        raise RuntimeError(f"{len(counts)} of {len(names)} pieces were counted")
    return dict(zip(names, counts, strict=True)), names


def count(program: Path, level: str, foreign: bool = False) -> tuple[Counts, Lines]:
    """Instructions of every piece, at a level of this machine; or of every product, at a foreign one.

    Raises:
        CannotCountError: no process can be followed here.
    """
    command = [str(program), *(("--foreign", level) if foreign else ())]
    variables = os.environ | {"POCKETLM_ISA": "" if foreign else level}
    # Where the function lies is the same in every run.
    with Process([program], variables | {"POCKETLM_ISA": "scalar"}) as process:
        address, _ = _describe(process.finish())
    counts: list[int] = []
    with Process(command, variables) as process:
        while process.run_to(address):
            counts.append(process.count_call())
        return _paired(_describe(process.finish())[1], counts)


def _calls(trace: Iterator[bytes], wanted: int) -> list[int]:
    """Instructions of every call of the function at ``wanted``, from a trace with a line for each
    instruction of four bytes."""
    counts: list[int] = []
    before, end = 0, None
    for line in trace:
        if (found := PC.match(line)) is None:
            continue
        at = int(found[1], 16)
        if end is None and at == wanted:
            end = before + 4  # behind the call
            counts.append(0)
        elif at == end:
            end = None
        if end is not None:
            counts[-1] += 1
        before = at
    if end is not None:
        raise ValueError("the trace ends within a call")
    return counts


def count_arm(level: str) -> tuple[Counts, Lines]:
    """The same for a level of ARM, under qemu, with the compiler and libraries of ``tools/arm.sh``.

    Raises:
        CannotCountError: they cannot be installed here, or the program fails.
    """
    target = "aarch64-unknown-linux-gnu"
    folder = ROOT / os.environ.get("CARGO_TARGET_DIR", "target/arm64")
    program = folder / target / "release" / "examples" / "instruction_work"
    try:
        subprocess.run([ARM, "cargo", *EXAMPLE, "--target", target], cwd=ROOT, check=True)
    except subprocess.CalledProcessError as error:
        raise CannotCountError(f"tools/arm.sh failed ({error.returncode})") from None
    run = f"exec $EMULATOR {{}} {shlex.quote(str(program))}"
    variables = os.environ | {"POCKETLM_ISA": level, "QEMU_CPU": ARM_LEVELS[level]}
    plain = subprocess.run(
        [ARM, "sh", "-c", run.format("")], env=variables, capture_output=True, text=True, check=True
    )
    address, lines = _describe(plain.stdout)
    command = [ARM, "sh", "-c", run.format("-singlestep -d exec,nochain")]
    with subprocess.Popen(
        command, env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        assert process.stderr
        counts = _calls(iter(process.stderr), address)
    if process.returncode:
        raise CannotCountError(f"the emulator ended with exit code {process.returncode}")
    return _paired(lines, counts)


def rates(counts: Recorded, lines: Lines) -> dict[str, tuple[float, float]]:
    """Instructions per 64-byte line of codes in the inner loop, by kind and rows, which is the difference of
    two widths; and those that are executed once, however many lines there are."""
    result: dict[str, tuple[float, float]] = {}
    names = [name for name in counts if " cols=" in name]
    for narrow, wide in zip(names[::2], names[1::2], strict=True):
        few, many = counts[narrow], counts[wide]
        assert few is not None and many is not None, "products are counted everywhere"
        line = (many - few) / (lines[wide] - lines[narrow])
        result[narrow.split(" cols=")[0]] = line, few - line * lines[narrow]
    return result


def differences(found: Counts, recorded: Recorded) -> list[str]:
    """What differs by more than the tolerance, or is on one side only, in words."""
    result = [f"{name}: not recorded" for name in found if name not in recorded]
    gone = (name for name in recorded if name not in found)
    result += [f"{name}: recorded, but no piece of work has that name" for name in gone]
    for name in found:
        here, known = found[name], recorded.get(name)
        if known is not None and abs(here - known) > TOLERANCE * known:
            result.append(f"{name}: {here:,} instructions, recorded {known:,} ({here / known - 1:+.1%})")
    return result


def comparable(level: dict[str, Any], recorded: Recorded) -> Recorded:
    """Of the recorded counts those that can be counted here: of a foreign level no steps."""
    return {name: n for name, n in recorded.items() if name in level["counts"] or not level["foreign"]}


def foreign_steps(before: dict[str, Any], levels: dict[str, Any], found: dict[str, Any]) -> Recorded:
    """What stays recorded of a level's steps, ``before`` being its record, that cannot be counted here: their
    counts, or None for each if steps at the levels that can be counted have changed since."""
    steps = {name: n for name, n in before["counts"].items() if "step" in name}
    here = {level: values for level, values in found.items() if not values["foreign"]}
    for level, values in here.items():
        known = levels[level]["counts"] if level in levels else {}
        for name in steps.keys() & values["counts"].keys():
            if abs(values["counts"][name] - (known.get(name) or 0)) > CHANGED * values["counts"][name]:
                return dict.fromkeys(steps)
    return steps


def rates_table(levels: Mapping[str, Recorded], lines: Lines) -> str:
    """Markdown: instructions per line, and once, by piece and level; then those of whole steps."""
    found = {level: rates(counts, lines) for level, counts in levels.items()}
    rows = []
    for name in dict.fromkeys(name for pieces in found.values() for name in pieces):
        cells = (pieces.get(name) for pieces in found.values())
        rows.append([name, *("-" if cell is None else "{:.2f} + {:,.0f}".format(*cell) for cell in cells)])
    for name in dict.fromkeys(name for counts in levels.values() for name in counts if "step" in name):
        cells_of_steps = (counts.get(name) for counts in levels.values())
        rows.append([f"{name}, in all", *("-" if cell is None else f"{cell:,}" for cell in cells_of_steps)])
    return table(["instructions per 64-byte line + once", *levels], rows)


def main() -> None:
    """Counts, prints, and records or compares."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--record", action="store_true", help=f"write {RECORD.relative_to(ROOT)} anew")
    parser.add_argument(
        "--arm", action="store_true", help="count NEON's too (Debian 12 on x86-64; see tools/arm.sh)"
    )
    parser.add_argument("--json", action="store_true", help="print the counts as a record and nothing else")
    args = parser.parse_args()
    program = build()
    found: dict[str, dict[str, Any]] = {}
    lines: Lines = {}
    for level in levels(program):
        counts, lines = count(program, level)
        found[level] = {"compiler": compiler(), "counts": counts, "foreign": False}
    for level in FOREIGN:
        if level not in found:
            counts, lines_of_products = count(program, level, foreign=True)
            lines = lines_of_products | lines
            found[level] = {"compiler": compiler(), "counts": counts, "foreign": True}
    for level in ARM_LEVELS if args.arm else ():
        counts, lines = count_arm(level)
        found[level] = {"compiler": compiler([ARM]), "counts": counts, "foreign": False}
    if args.json:
        print(json.dumps({"lines": lines, "levels": found}))
        return
    print(rates_table({level: values["counts"] for level, values in found.items()}, lines) + "\n")
    recorded = json.loads(RECORD.read_text()) if RECORD.exists() else {"levels": {}}
    if args.record:
        known = recorded["levels"]
        for level, values in found.items():
            before = known.get(level, {"compiler": None})
            if values["foreign"] and before["compiler"] == values["compiler"]:
                values["counts"] |= foreign_steps(before, known, found)
        # Another machine's levels stay.
        kept = known | {
            level: {key: values[key] for key in ("compiler", "counts")} for level, values in found.items()
        }
        levels_in_order = {level: kept[level] for level in sorted(kept, key=LEVELS.index)}
        RECORD.write_text(json.dumps({"lines": lines, "levels": levels_in_order}, indent=1) + "\n")
        print(f"{RECORD.relative_to(ROOT)}: {', '.join(found)} recorded")
        return
    said = []
    for level, values in found.items():
        known = recorded["levels"].get(level, {"compiler": "nothing", "counts": {}})
        if known["compiler"] != values["compiler"]:
            said.append(f"{level}: recorded with {known['compiler']}, now {values['compiler']}")
        known_here = comparable(values, known["counts"])
        said += [f"{level}: {text}" for text in differences(values["counts"], known_here)]
        for name in (name for name, n in known_here.items() if n is None):
            print(f"{level}: {name}: not compared, since it was recorded before a change; --record counts it")
        if values["foreign"]:
            print(f"{level}: not on this machine, so that only products were counted, by passing over them")
    print("\n".join(said) or f"no piece differs from {RECORD.name} by more than {TOLERANCE:.0%}")
    sys.exit(bool(said))


if __name__ == "__main__":
    try:
        main()
    except CannotCountError as error:
        sys.exit(f"instructions cannot be counted: {error}")
