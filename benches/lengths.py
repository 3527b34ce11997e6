"""Lengths of vector instructions of x86-64 (VEX and EVEX), for stepping over those that a processor lacks.

After Intel's Software Developer's Manual, volume 2, chapter 2: prefix, opcode, ModRM, perhaps SIB, perhaps a
displacement, perhaps an immediate byte.
"""

from __future__ import annotations

MOST_BYTES = 15  # of any instruction
# Opcodes of the first map (0F) that an immediate byte follows: shuffles, shifts by a constant, comparisons,
# insertions and extractions of words.
_IMMEDIATE = frozenset({0x70, 0x71, 0x72, 0x73, 0xC2, 0xC4, 0xC5, 0xC6})
_VZEROUPPER = 0x77  # has no ModRM
# What writes general registers or flags, on which branches and addresses may depend, by map and opcode: moves
# of masks and lanes to registers, tests of masks, conversions to integers, comparisons; and BMI.
_GENERAL = {
    1: frozenset({0x2C, 0x2D, 0x2E, 0x2F, 0x50, 0x78, 0x79, 0x93, 0x98, 0x99, 0xC5, 0xD7}),
    2: frozenset({0xF2, 0xF3, 0xF5, 0xF6, 0xF7}),
    3: frozenset({0x14, 0x15, 0x16, 0x17, 0xF0}),
}


def vector_length(code: bytes) -> int | None:
    """Bytes of the VEX or EVEX instruction that ``code`` begins with; ``None`` if it is none, or one whose
    result may decide about the way. ``code`` holds it whole, as the first 15 bytes do."""
    if code[:1] == b"\xc5":
        at, opcodes = 2, 1
    elif code[:1] == b"\xc4":
        at, opcodes = 3, code[1] & 0b11111
    elif code[:1] == b"\x62":
        at, opcodes = 4, code[1] & 0b111
    else:
        return None
    opcode = code[at]
    if opcode in _GENERAL.get(opcodes, range(256)):
        return None
    if opcodes == 1 and opcode == _VZEROUPPER:
        return at + 1
    immediate = opcodes == 3 or (opcodes == 1 and opcode in _IMMEDIATE)
    return at + 1 + _operand(code[at + 1 : at + 3]) + immediate


def _operand(code: bytes) -> int:
    """Bytes of ModRM, SIB and displacement."""
    mode, register = code[0] >> 6, code[0] & 0b111
    if mode == 3:
        return 1
    scaled = register == 4
    base = code[1] & 0b111 if scaled else register
    displacement = {0: 4 if base == 5 else 0, 1: 1, 2: 4}[mode]  # EVEX scales its byte, but it stays one
    return 1 + scaled + displacement
