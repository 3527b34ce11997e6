"""Looks at the machine and at the installation."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

from pocketlm import _core
from pocketlm.errors import PocketlmError

LIBRARIES = ("numpy", "tokenizers", "jinja2", "huggingface_hub", "click", "rich", "tqdm")


def examine(*, quick: bool = False) -> dict[str, Any]:
    """What there is, as plain data. ``problems`` lists in words what does not work; it is empty if all
    does."""
    problems: list[str] = []
    total, available = _memory()
    found: dict[str, Any] = {
        "pocketlm": _core.__version__,
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "system": platform.platform(),
        "machine": platform.machine(),
        "processor": _processor(),
        "cpus": os.cpu_count(),
        "affinity": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "cpu_quota": _quota(),
        "memory_bytes": total,
        "memory_available_bytes": available,
        "libraries": {name: _version(name, problems) for name in LIBRARIES},
        "threads": _core.cpu_count(),
        "levels": dict(_core.isa_levels()),
        "isa_notes": _core.isa_notes(),
        "isa": "none",
        "prompt_kernels": {},
        "kernels": _core.kernel_registry(),
        "read_bandwidth_bytes_per_second": None if quick else _core.read_bandwidth(_core.cpu_count()),
        "bundled_model": None,
    }
    try:
        found["isa"] = _core.current_isa()
        found["prompt_kernels"] = {kind: choices for kind, *choices in _core.prompt_kernels()}
    except PocketlmError as error:
        problems.append(str(error))
    if not quick and not problems:
        try:
            found["bundled_model"] = _try_bundled()
        except PocketlmError as error:
            problems.append(f"bundled model: {error}")
    return {**found, "problems": problems}


def _try_bundled() -> str:
    from pocketlm.assemble import load

    with load() as lm:
        completion = lm.generate("Once upon a time", max_tokens=12, temperature=0)
        return f"{lm.name}: Once upon a time{completion.text.rstrip()} ..."


def _version(name: str, problems: list[str]) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        problems.append(f"{name} is not installed")
        return "missing"


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


def _memory() -> tuple[int, int]:
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        total, available = (1024 * int(lines[key].split()[0]) for key in ("MemTotal", "MemAvailable"))
    except (OSError, KeyError, ValueError, IndexError):
        return 0, 0
    return total, available


def _quota() -> float | None:
    """Processors that the container may use, by its cgroup."""
    try:
        most, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return None if most == "max" else int(most) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None
