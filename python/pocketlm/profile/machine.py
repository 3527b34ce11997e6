"""The machine's measured roofs: bytes per second from memory, int8 multiply-adds per second."""

from __future__ import annotations

import dataclasses
import hashlib
import platform
import re
import subprocess
import sys
from pathlib import Path

from pocketlm._core import int8_peak
from pocketlm.errors import InternalError


@dataclasses.dataclass(frozen=True)
class Machine:
    """What bounds a step here.

    Attributes:
        processor: its name.
        isa, threads: instruction set, and threads of a step at most; the roofs are those of all of them.
        read_bandwidth: bytes per second that the threads read from memory together, measured.
        int8_peak: int8 multiply-adds per second that they do together from registers, measured.
    """

    processor: str
    isa: str
    threads: int
    read_bandwidth: float
    int8_peak: float

    @classmethod
    def measure(cls, isa: str, threads: int) -> Machine:
        """Measures both roofs in about a second.

        Raises:
            InternalError: the memory's speed could not be measured.
        """
        return cls(processor_name(), isa, threads, measure_bandwidth(threads), int8_peak(threads))

    def better(self, other: Machine) -> Machine:
        """The higher of each roof: what disturbs a measurement lowers it."""
        return dataclasses.replace(
            self,
            read_bandwidth=max(self.read_bandwidth, other.read_bandwidth),
            int8_peak=max(self.int8_peak, other.int8_peak),
        )

    @property
    def fingerprint(self) -> str:
        """Tells machines, builds and settings apart whose kernels may take different times."""
        return fingerprint(self.processor, self.isa, self.threads)

    def roof_seconds(self, read: int, macs: int) -> float:
        """The time that reading so many bytes and doing so many multiply-adds takes at least."""
        return max(read / self.read_bandwidth, macs / self.int8_peak)

    def bound(self, read: int, macs: int) -> str | None:
        """Which roof is the lower one, ``memory`` or ``compute``; ``None`` for work that is neither."""
        if not read and not macs:
            return None
        return "memory" if read / self.read_bandwidth >= macs / self.int8_peak else "compute"


def fingerprint(processor: str, isa: str, threads: int) -> str:
    """Of a processor and this build, with an instruction set and a number of threads."""
    build = Path(sys.modules["pocketlm._core"].__file__ or "").stat()
    facts = (processor, platform.machine(), isa, threads, build.st_size, build.st_mtime_ns)
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def processor_name() -> str:
    """The processor as the system calls it."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine() or "unknown"


def measure_bandwidth(threads: int) -> float:
    """Bytes per second that ``threads`` threads read from memory.

    In a process of its own: the buffer, larger than all caches, must not count as this one's memory.
    """
    code = "import sys; from pocketlm._core import read_bandwidth; print(read_bandwidth(int(sys.argv[1])))"
    found = subprocess.run(
        [sys.executable, "-c", code, str(threads)], capture_output=True, text=True, check=False
    )
    if found.returncode:
        raise InternalError(f"the memory speed could not be measured: {found.stderr[-200:]}")
    return float(found.stdout)
