"""Counts the instructions of a function in another process (Linux on x86-64, by ``ptrace``).

The child stops at each instruction that may branch; how many lie between two of them its code says. Exact,
for any instruction that the processor has, and nearly so for vector instructions that it lacks, which are
passed over. An instruction that repeats itself (``rep movs``) counts once. For small pieces of work: a stop
takes some 50 µs on virtual machines. Those seldom have a hardware counter, and valgrind knows no AVX-512. One
thread alone is followed.
"""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from benches.disassembly import PIECE, CannotCountError, Run, passable, run_from

TRACEME, PEEKDATA, PEEKUSER, POKEUSER, CONT, SINGLESTEP = 0, 2, 3, 6, 7, 9
RIP, RSP = 16 * 8, 19 * 8  # in struct user_regs_struct of x86-64
NO_RANDOMIZATION = 0x0040000  # of addresses, so that counts that depend on alignment repeat
BREAKPOINT = 0xCC


def _library() -> ctypes.CDLL:
    if not (sys.platform == "linux" and platform.machine() == "x86_64"):
        raise CannotCountError(
            f"instructions are counted on Linux on x86-64, not {sys.platform} on {platform.machine()}"
        )
    library = ctypes.CDLL(None, use_errno=True)
    library.ptrace.restype = ctypes.c_long
    library.ptrace.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
    return library


class Process:
    """A stopped child under our control; a context manager that ends it."""

    def __init__(self, command: Sequence[str | Path], variables: Mapping[str, str]) -> None:
        """Starts ``command`` and stops it before its first instruction.

        Raises:
            CannotCountError: this machine is none on which that is possible, or does not allow it.
        """
        self._library = library = _library()

        def prepare() -> None:
            library.personality(NO_RANDOMIZATION)
            if library.ptrace(TRACEME, 0, None, None):
                os._exit(126)

        self._runs: dict[int, Run] = {}
        self._passable: dict[int, int] = {}  # bytes of vector instructions, by address
        self._marked: dict[int, int] = {}  # first bytes of instructions that breakpoints replace
        self.child = subprocess.Popen(
            command, env=dict(variables), stdout=subprocess.PIPE, preexec_fn=prepare
        )
        _, status = os.waitpid(self.child.pid, 0)
        if not os.WIFSTOPPED(status):
            self.child.returncode = os.waitstatus_to_exitcode(status)
            raise CannotCountError(f"ptrace is not allowed here (exit code {self.child.returncode})")
        self._memory = os.open(f"/proc/{self.child.pid}/mem", os.O_RDWR)

    def __enter__(self) -> Process:
        # A stop is two switches between us and the child: four times as fast on one processor as between two.
        self._processors = os.sched_getaffinity(0)
        for process in (0, self.child.pid):
            os.sched_setaffinity(process, {max(self._processors)})
        return self

    def __exit__(self, *_: object) -> None:
        os.sched_setaffinity(0, self._processors)
        os.close(self._memory)
        if self.child.returncode is None:
            self.child.kill()
            os.waitpid(self.child.pid, 0)
            self.child.returncode = -signal.SIGKILL
        if self.child.stdout:
            self.child.stdout.close()

    def _ask(self, request: int, address: int, data: int = 0) -> int:
        ctypes.set_errno(0)
        found: int = self._library.ptrace(request, self.child.pid, address, data)
        if found == -1 and (error := ctypes.get_errno()):
            raise OSError(error, f"ptrace({request}): {os.strerror(error)}")
        return found

    def _go(self, request: int, passing: bool = False) -> bool:
        """Lets the child run until it stops at a trap; whether it did, rather than end. ``passing`` over
        vector instructions that the processor lacks."""
        passed = 0
        while True:
            self._ask(request, 0, passed)
            _, status = os.waitpid(self.child.pid, 0)
            if not os.WIFSTOPPED(status):
                self.child.returncode = os.waitstatus_to_exitcode(status)
                return False
            stopped = os.WSTOPSIG(status)
            if stopped == signal.SIGTRAP:
                return True
            passed = 0 if passing and stopped == signal.SIGILL and self._pass_over() else _passed(stopped)

    def finish(self) -> str:
        """Runs to the end, and returns all that the child wrote to its standard output (of at most a pipe's
        size)."""
        while self.child.returncode is None and self._go(CONT):
            pass
        if self.child.returncode or not self.child.stdout:
            raise OSError(f"the program ended with exit code {self.child.returncode}")
        return self.child.stdout.read().decode()

    def run_to(self, address: int) -> bool:
        """Runs until ``address`` is the next instruction; whether it came to that, rather than an end."""
        first = os.pread(self._memory, 1, address)[0]
        self._mark(address, BREAKPOINT)
        if not self._go(CONT):
            return False
        at = self._ask(PEEKUSER, RIP)
        if at != address + 1:
            raise OSError(f"stopped at {at:#x}, not at {address:#x}")
        self._mark(address, first)
        self._ask(POKEUSER, RIP, address)
        return True

    def count_call(self) -> int:
        """Instructions from the first of a function, at which the child is, to its return, included.

        Vector instructions that the processor lacks are counted and passed over, so that registers and memory
        keep what they held: right as long as no branch and no address follows from a vector.
        """
        end = self._ask(PEEKDATA, self._ask(PEEKUSER, RSP))
        at, count = self._ask(PEEKUSER, RIP), 0
        while at != end:
            if at not in self._runs:
                self._runs[at] = run_from(at, self._code)
            run = self._runs[at]
            if at != run.last:
                self._run_to_last(run)
            at = self._step(run.last)
            count += run.instructions
        for address, first in self._marked.items():
            self._mark(address, first)
        self._marked.clear()
        return count

    def _run_to_last(self, run: Run) -> None:
        """Lets the child run until the last instruction of a run is the next one."""
        if run.last not in self._marked:
            self._marked[run.last] = os.pread(self._memory, 1, run.last)[0]
            self._mark(run.last, BREAKPOINT)
        if not self._go(CONT, passing=True):
            raise OSError(f"the program ended while it was counted ({self.child.returncode})")
        if (stopped := self._ask(PEEKUSER, RIP)) != run.last + 1:
            raise OSError(f"stopped at {stopped:#x}, not behind {run.last:#x}")
        self._ask(POKEUSER, RIP, run.last)

    def _step(self, address: int) -> int:
        """Executes the instruction at ``address``, which is the next one; the address behind it."""
        first = self._marked.get(address)
        if first is not None:
            self._mark(address, first)
        if not self._go(SINGLESTEP):
            raise OSError(f"the program ended while it was counted ({self.child.returncode})")
        if first is not None:
            self._mark(address, BREAKPOINT)
        return self._ask(PEEKUSER, RIP)

    def _mark(self, address: int, first: int) -> None:
        """Replaces the first byte of an instruction."""
        os.pwrite(self._memory, bytes([first]), address)

    def _code(self, address: int, size: int) -> bytes:
        """The child's code, without our marks; less where that ends."""
        try:
            code = bytearray(os.pread(self._memory, size, address))
        except OSError:  # nothing is mapped there
            return b""
        for marked, first in self._marked.items():
            if address <= marked < address + len(code):
                code[marked - address] = first
        return bytes(code)

    def _pass_over(self) -> bool:
        """Goes behind the next vector instruction and those that follow it, whether the processor has them or
        not; whether there was one."""
        at = self._ask(PEEKUSER, RIP)
        if at not in self._passable:
            self._passable[at] = passable(self._code(at, PIECE))
        self._ask(POKEUSER, RIP, at + self._passable[at])
        return self._passable[at] > 0


def _passed(number: int) -> int:
    """The signal to go on with: the one that stopped the child, unless that would only stop it again."""
    return 0 if number in (signal.SIGSTOP, signal.SIGTRAP) else number
