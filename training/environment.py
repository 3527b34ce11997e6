"""Process settings that make JAX on a CPU fast. They must be in place before the process starts."""

from __future__ import annotations

import os
import sys

# XLA allocates its buffers anew for every step. By default glibc returns them to the kernel each time, and
# faulting their pages in again costs more than the arithmetic. Keep them, in huge pages.
TUNABLES = {
    "glibc.malloc.hugetlb": "1",
    "glibc.malloc.mmap_threshold": str(1 << 32),
    "glibc.malloc.trim_threshold": str(1 << 34),
    "glibc.malloc.arena_max": "1",
}
VARIABLE = "GLIBC_TUNABLES"


def ensure(module: str) -> None:
    """Starts ``python -m module`` anew with these settings, unless GLIBC_TUNABLES is set already."""
    if sys.platform == "linux" and VARIABLE not in os.environ:
        value = ":".join(f"{key}={setting}" for key, setting in TUNABLES.items())
        os.execve(
            sys.executable, [sys.executable, "-m", module, *sys.argv[1:]], {**os.environ, VARIABLE: value}
        )
