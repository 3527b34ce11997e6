"""What the machine is, and what it was doing while something was measured."""

from __future__ import annotations

import contextlib
import mmap
import os
from pathlib import Path
from typing import Any

from pocketlm import _core
from pocketlm.loading.files import forget_pages

FLAGS = "avx2 avx_vnni avx512f avx512_vnni avx512vbmi avx512_bf16 amx_int8 asimddp i8mm"


def describe() -> dict[str, Any]:
    """Processor, cores, memory and instruction sets."""
    fields: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    memory = next(
        line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal")
    )
    return {
        "processor": fields.get("model name", fields.get("CPU part", "unknown")),
        "cores": os.cpu_count(),
        "memory_bytes": int(memory.split()[1]) * 1024,
        "instruction_sets": [flag for flag in FLAGS.split() if flag in flags],
    }


def files_of(path: Path) -> list[Path]:
    """A file, or all in a directory."""
    return [file for file in ([path] if path.is_file() else sorted(path.rglob("*"))) if file.is_file()]


def drop_files(path: Path) -> None:
    """Takes a file, or all in a directory, out of the page cache, so that the next to read them decides how
    large the cache's pages are. Written and copied files have small ones."""
    for file in files_of(path):
        with file.open("rb") as source:
            os.fsync(source.fileno())
            forget_pages(source.fileno())


def read_files(path: Path) -> None:
    """Reads a file, or all in a directory, so that they are in the page cache afterwards (where they fit), in
    large pages if the file system has them."""
    for file in files_of(path):
        if not file.stat().st_size:
            continue
        with file.open("rb") as source, mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ) as memory:
            if hasattr(mmap, "MADV_HUGEPAGE"):
                with contextlib.suppress(OSError):  # a system without them
                    memory.madvise(mmap.MADV_HUGEPAGE)
            for at in range(0, len(memory), mmap.PAGESIZE):
                memory[at]


def read_bandwidth(threads: int, seconds: float = 0.4) -> float:
    """Bytes per second that ``threads`` threads read from memory together."""
    return _core.read_bandwidth(threads, seconds)
