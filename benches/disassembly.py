"""What the code of x86-64 says without being executed: where it may branch, and what can be skipped."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

PIECE = 256  # bytes read at a time; more than an instruction has


class Run(NamedTuple):
    """Instructions that are executed one after another.

    Attributes:
        instructions: how many, with the last.
        last: the address of the last, which may go elsewhere than to the next.
    """

    instructions: int
    last: int


class CannotCountError(Exception):
    """Why instructions cannot be counted here, in one line."""


@functools.cache
def _iced() -> Any:
    """The decoder.

    Raises:
        CannotCountError: it is not installed, as on ARM, where nothing needs it.
    """
    try:
        import iced_x86
    except ImportError:
        raise CannotCountError("iced-x86 is not installed") from None
    return iced_x86


def run_from(address: int, read: Callable[[int, int], bytes]) -> Run:
    """The run that begins at ``address``. ``read(address, size)`` gives what bytes there are.

    A system call is no end: it comes back to the next instruction, unless it ends a signal's handler.

    Raises:
        ValueError: there is no instruction.
    """
    iced = _iced()
    count, at = 0, address
    while True:
        piece = at
        for instruction in iced.Decoder(64, read(piece, PIECE), ip=piece):
            if instruction.is_invalid:
                break  # or cut off by the piece's end: then the next piece begins with it
            count, at = count + 1, instruction.next_ip
            if (
                instruction.flow_control != iced.FlowControl.NEXT
                and instruction.mnemonic != iced.Mnemonic.SYSCALL
            ):
                return Run(count, instruction.ip)
        if at == piece:
            raise ValueError(f"{at:#x}: no instruction")


def passable(code: bytes) -> int:
    """Bytes of the vector instructions that ``code`` begins with and whose results decide about no way: up to
    the first other instruction, one that writes general registers or flags, or, behind the first, one that
    writes memory. ``code`` may end within an instruction."""
    iced = _iced()
    decoder, information = iced.Decoder(64, code), iced.InstructionInfoFactory()
    read = (iced.OpAccess.READ, iced.OpAccess.COND_READ, iced.OpAccess.NO_MEM_ACCESS, iced.OpAccess.NONE)
    length = 0
    for instruction in decoder:
        if instruction.is_invalid or instruction.encoding not in (
            iced.EncodingKind.VEX,
            iced.EncodingKind.EVEX,
        ):
            break
        about = information.info(instruction)
        written = (one.register for one in about.used_registers() if one.access not in read)
        stores = any(one.access not in read for one in about.used_memory())
        if instruction.rflags_modified or any(map(iced.RegisterExt.is_gpr, written)) or (length and stores):
            break
        length += instruction.len
    return length
