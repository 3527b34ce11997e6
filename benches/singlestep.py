"""Counts the instructions of a function in another process, one by one (Linux on x86-64, by ``ptrace``).

Exact, for any instruction that the processor has and nearly so for vector instructions that it lacks, which
are passed over; but no faster than some 100,000 instructions per second:
for small pieces of work. A hardware counter would be faster, but virtual machines seldom have one, and
valgrind does not know AVX-512.
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

from benches.lengths import MOST_BYTES, vector_length

TRACEME, PEEKDATA, PEEKUSER, POKEDATA, POKEUSER, CONT, KILL, SINGLESTEP = 0, 2, 3, 5, 6, 7, 8, 9
RIP, RSP = 16 * 8, 19 * 8  # in struct user_regs_struct of x86-64
NO_RANDOMIZATION = 0x0040000  # of addresses, so that counts that depend on alignment repeat
BREAKPOINT = 0xCC


class CannotCountError(Exception):
    """Why instructions cannot be counted here, in one line."""


def _library() -> ctypes.CDLL:
    if not (sys.platform == "linux" and platform.machine() == "x86_64"):
        raise CannotCountError(
            f"single steps are for Linux on x86-64, not {sys.platform} on {platform.machine()}"
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

        self.child = subprocess.Popen(
            command, env=dict(variables), stdout=subprocess.PIPE, preexec_fn=prepare
        )
        _, status = os.waitpid(self.child.pid, 0)
        if not os.WIFSTOPPED(status):
            self.child.returncode = os.waitstatus_to_exitcode(status)
            raise CannotCountError(f"ptrace is not allowed here (exit code {self.child.returncode})")

    def __enter__(self) -> Process:
        # A step is two switches between us and the child: four times as fast on one processor as between two.
        self._processors = os.sched_getaffinity(0)
        for process in (0, self.child.pid):
            os.sched_setaffinity(process, {max(self._processors)})
        return self

    def __exit__(self, *_: object) -> None:
        os.sched_setaffinity(0, self._processors)
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

    def _go(self, request: int) -> bool:
        """Lets the child run until it stops at a trap; whether it did, rather than end."""
        passed = 0
        while True:
            self._ask(request, 0, passed)
            _, status = os.waitpid(self.child.pid, 0)
            if not os.WIFSTOPPED(status):
                self.child.returncode = os.waitstatus_to_exitcode(status)
                return False
            if os.WSTOPSIG(status) == signal.SIGTRAP:
                return True
            passed = _passed(os.WSTOPSIG(status))

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
        word = self._ask(PEEKDATA, address)
        self._ask(POKEDATA, address, word & ~0xFF | BREAKPOINT)
        if not self._go(CONT):
            return False
        at = self._ask(PEEKUSER, RIP)
        if at != address + 1:
            raise OSError(f"stopped at {at:#x}, not at {address:#x}")
        self._ask(POKEDATA, address, word)
        self._ask(POKEUSER, RIP, address)
        return True

    def count_call(self) -> int:
        """Instructions from the first of a function, at which the child is, to its return, included.

        Vector instructions that the processor lacks are counted and passed over, so that registers and memory
        keep what they held: right as long as no branch and no address follows from a vector.
        """
        end = self._ask(PEEKDATA, self._ask(PEEKUSER, RSP))
        pid, ptrace, wait = self.child.pid, self._library.ptrace, os.waitpid
        count, signalled = 0, 0
        trap, illegal = (number << 8 | 0x7F for number in (signal.SIGTRAP, signal.SIGILL))
        while True:
            ptrace(SINGLESTEP, pid, None, signalled)
            if (status := wait(pid, 0)[1]) == trap or (status == illegal and self._pass_over()):
                count, signalled = count + 1, 0
            elif os.WIFSTOPPED(
                status
            ):  # a signal came before the next instruction, which is yet to be executed
                signalled = _passed(os.WSTOPSIG(status))
                continue
            else:
                self.child.returncode = os.waitstatus_to_exitcode(status)
                raise OSError(f"the program ended while it was counted ({self.child.returncode})")
            if ptrace(PEEKUSER, pid, RIP, None) == end:
                return count

    def _pass_over(self) -> bool:
        """Goes behind the next instruction, if it is a vector instruction."""
        at = self._ask(PEEKUSER, RIP)
        words = [self._ask(PEEKDATA, at + 8 * i) & (1 << 64) - 1 for i in range(2)]
        length = vector_length(b"".join(word.to_bytes(8, "little") for word in words)[:MOST_BYTES])
        if length is None:
            return False
        self._ask(POKEUSER, RIP, at + length)
        return True


def _passed(number: int) -> int:
    """The signal to go on with: the one that stopped the child, unless that would only stop it again."""
    return 0 if number in (signal.SIGSTOP, signal.SIGTRAP) else number
