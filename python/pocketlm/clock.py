"""What other processes took of the machine while something was measured."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Clock:
    """CPU seconds of the whole machine, from ``/proc/stat``, and the time at which they were read."""

    busy: float
    at: float

    @classmethod
    def now(cls) -> Clock:
        """Reads the clock. Time stolen by the hypervisor counts as busy: it was not ours.

        Raises:
            OSError: the system has no ``/proc/stat`` (it is not Linux).
        """
        values = [int(v) for v in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
        user, nice, system, _idle, _iowait, irq, softirq, steal = values
        busy = user + nice + system + irq + softirq + steal
        return cls(busy / os.sysconf("SC_CLK_TCK"), time.perf_counter())

    @classmethod
    def started(cls) -> Clock | None:
        """As :meth:`now`; ``None`` where the system has no such clock."""
        try:
            return cls.now()
        except OSError:
            return None

    def others(self, own: float) -> float:
        """The share of all cores that other processes took since then, if we took ``own`` CPU seconds."""
        now = Clock.now()
        total = (now.at - self.at) * (os.cpu_count() or 1)
        return min(1.0, max(0.0, (now.busy - self.busy - own) / total))
