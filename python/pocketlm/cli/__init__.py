"""The ``pocketlm`` command."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import NoReturn

FAILURE, USAGE, INTERRUPTED = 1, 2, 130


def main() -> NoReturn:
    """Entry point: runs the command line and exits with its status."""
    _open_closed_streams()
    # A character that the terminal cannot show, or a path that is no text, is no reason to stop.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    if isinstance(sys.stdin, io.TextIOWrapper):
        # As of files: text is UTF-8, whatever the locale, and what is none is to be said.
        sys.stdin.reconfigure(encoding="utf-8", errors="strict")
    try:
        status = run(sys.argv[1:])
    except KeyboardInterrupt:  # so early that nothing was there to notice it, or while a failure was told
        _ignore_interrupts()
        status = _complain("interrupted", INTERRUPTED)
    sys.exit(status)


def run(args: Sequence[str]) -> int:
    """Runs a command line; returns the exit status: 0, 1 for a failure, 2 for wrong usage, 130 for Ctrl-C.

    Wrong usage is what the arguments alone tell, values out of range among them; a failure is what files, the
    machine or budgets do not allow. Either is one line on standard error. ``POCKETLM_DEBUG=1`` lets
    exceptions through, for their tracebacks. After Ctrl-C further ones are ignored: the process is to end.
    """
    import click

    from pocketlm.cli.group import cli
    from pocketlm.errors import ParameterError, PocketlmError

    try:
        # Without anything: what there is, rather than an error.
        status = cli.main(args=list(args) or ["--help"], prog_name="pocketlm", standalone_mode=False)
        sys.stdout.flush()
        return status if isinstance(status, int) else 0
    except click.UsageError as problem:
        path = problem.ctx.command_path if problem.ctx else "pocketlm"
        return _complain(f"{problem.format_message()} (see {path} --help)", USAGE)
    except click.ClickException as problem:
        return _complain(problem.format_message(), FAILURE)
    except (click.Abort, KeyboardInterrupt) as stop:
        _ignore_interrupts()
        said = stop.__cause__ if isinstance(stop, click.Abort) else stop  # what a command adds for the user
        return _complain(str(said or "") or "interrupted", INTERRUPTED)
    except (BrokenPipeError, SystemExit):
        # Whoever read the output has seen enough (click turns that into SystemExit, its only one here).
        # Python would complain when it flushes at exit.
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as problem:
        if os.environ.get("POCKETLM_DEBUG"):
            raise
        if isinstance(problem, PocketlmError):
            return _complain(str(problem), USAGE if isinstance(problem, ParameterError) else FAILURE)
        if isinstance(problem, MemoryError):
            return _complain("out of memory", FAILURE)
        if isinstance(problem, OSError) and problem.strerror:
            return _complain(f"{problem.filename or 'output'}: {problem.strerror}", FAILURE)
        kind = type(problem).__name__
        return _complain(f"{kind}: {problem} (unexpected; POCKETLM_DEBUG=1 shows where)", FAILURE)


def _open_closed_streams() -> None:
    """Gives a standard stream that whoever started the command has closed the null device: what would be read
    there is empty, and what would be written is not wanted, which is no failure.

    Before anything else is opened: the system gives the lowest free descriptor, which is the stream's own. A
    model's file would get it otherwise, and what writes to descriptor 2 would write into that.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            number = os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(number, True)  # processes that are started here have the stream as well
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", closefd=False))


def _ignore_interrupts() -> None:
    """A second Ctrl-C is not to cut short what is said about the first, nor to show a traceback."""
    with suppress(ValueError):  # not the main thread: it does not get them either
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _complain(message: str, status: int) -> int:
    with suppress(OSError, ValueError):
        print("pocketlm: error:", " ".join(message.split()), file=sys.stderr)
    return status
