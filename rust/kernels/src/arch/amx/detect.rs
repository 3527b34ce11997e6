//! Whether AMX can be used: the processor has it, the system permits it, and its products are right.
//!
//! The last is asked because a wrong product would go unnoticed: this is the one set of instructions here whose data the system has
//! to switch on, save and restore for each process by request, and under emulators and hypervisors that is young code.

use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count};
use std::sync::OnceLock;

use super::{ROWS, Row};
use crate::cpu::Level;
use crate::formats::{Kind, Palette, TILE, pack};
use crate::quantized::{ACT_BLOCK, QuantBuffer};
use crate::registry::{self, KernelFn, Op};
use crate::scratch::Scratch;

/// What was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// The processor or the system has none.
    Absent,
    /// The system knows it and refuses it to this process.
    Refused,
    /// Its products differ from the portable kernel's.
    Wrong,
    /// It works.
    Usable,
}

impl State {
    /// What a user should know.
    pub(crate) const fn note(self) -> Option<&'static str> {
        match self {
            State::Absent | State::Usable => None,
            State::Refused => Some("the system refuses AMX to this process; AVX-512 is used instead"),
            State::Wrong => {
                Some("the products of AMX differ from the portable kernel's; AVX-512 is used instead")
            }
        }
    }
}

/// Asks once for the process. What it asks the system for, the memory to save tiles in, is granted to all threads.
pub(crate) fn state() -> &'static State {
    static STATE: OnceLock<State> = OnceLock::new();
    STATE.get_or_init(|| {
        if !Level::Avx512Vbmi.is_available() || !has_tiles() {
            State::Absent
        } else if !permitted() {
            State::Refused
        } else if !ROWS.iter().all(is_right) {
            State::Wrong
        } else {
            State::Usable
        }
    })
}

/// Whether the processor has AMX-TILE and AMX-INT8 (leaf 7, EDX bits 24 and 25), and the system saves tiles (XCR0 bits 17
/// and 18).
fn has_tiles() -> bool {
    const FEATURES: u32 = 1 << 24 | 1 << 25;
    const SAVED: u32 = 3 << 17;
    const OSXSAVE: u32 = 1 << 27;
    if __cpuid(0).eax < 7 || __cpuid(1).ecx & OSXSAVE == 0 || __cpuid_count(7, 0).edx & FEATURES != FEATURES {
        return false;
    }
    let saved: u32;
    // SAFETY: the processor has OSXSAVE, so the instruction exists; register 0 does too.
    unsafe {
        asm!("xgetbv", in("ecx") 0, out("eax") saved, out("edx") _, options(nomem, nostack, preserves_flags));
    }
    saved & SAVED == SAVED
}

/// Asks the system for permission: `arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)`.
#[cfg(target_os = "linux")]
fn permitted() -> bool {
    const ARCH_PRCTL: isize = 158;
    const ARCH_REQ_XCOMP_PERM: usize = 0x1023;
    const XFEATURE_XTILEDATA: usize = 18;
    let result: isize;
    // SAFETY: a system call that changes nothing of the process's memory; the kernel keeps all registers but these.
    unsafe {
        asm!("syscall", inlateout("rax") ARCH_PRCTL => result, in("rdi") ARCH_REQ_XCOMP_PERM, in("rsi") XFEATURE_XTILEDATA,
            lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    result == 0
}

/// Other systems have ways of their own, which are not known here.
#[cfg(not(target_os = "linux"))]
fn permitted() -> bool {
    false
}

/// Whether a kernel gives what the portable one gives, on a shape with every kind of edge.
fn is_right(row: &Row) -> bool {
    let Some(kind) = Kind::from_name(row.kind) else { return false };
    let (sample, x) = (Sample::new(kind, 80, 353), activations(51, 353));
    let (w, x) = (sample.palette(), x.as_rows());
    let run = |row: &Row| {
        let KernelFn::MatmulPalette(kernel) = row.func else { return None };
        let mut out = vec![f32::NAN; x.rows() * w.tiles() * TILE];
        // SAFETY: the processor has the instructions of both levels and the system has permitted them; the
        // weight is of the row's kind, x has its inputs, the tiles exist, and out has the right length.
        unsafe { kernel(&w, &x, 0..w.tiles(), &mut Scratch::new(), &mut out) };
        Some(out.into_iter().map(f32::to_bits).collect::<Vec<_>>())
    };
    let portable = registry::find(Op::MatmulPalette, row.kind, row.variant, Level::Scalar);
    portable.is_some_and(|portable| run(row).is_some() && run(row) == run(portable))
}

/// A weight of numbers that look random.
pub(super) struct Sample {
    kind: Kind,
    rows: usize,
    cols: usize,
    codes: Vec<u8>,
    codebook: Vec<i8>,
    scale: Vec<u16>,
}

/// The same numbers every time, from 0 to below `limit`.
fn number(index: usize, limit: usize) -> usize {
    (index.wrapping_mul(0x9e37_79b9).wrapping_add(0x7f4a_7c15) >> 9) % limit
}

impl Sample {
    pub(super) fn new(kind: Kind, rows: usize, cols: usize) -> Self {
        let (low, high) = kind.grid();
        let span = (i32::from(high) - i32::from(low)) as usize + 1;
        let value = |index| (i32::from(low) + number(index, span) as i32) as i8;
        let code = |index| {
            if kind.codebook_len() == 0 { value(index) as u8 } else { number(index, kind.codes()) as u8 }
        };
        let codes: Vec<u8> = (0..rows * kind.codes_per_row(cols)).map(code).collect();
        Self {
            kind,
            rows,
            cols,
            codes: pack(kind, rows, cols, &codes).unwrap_or_default(),
            codebook: (0..rows.div_ceil(TILE) * kind.codebook_len()).map(|i| value(3 * i + 1)).collect(),
            scale: (0..rows).map(|i| 0x2c00 + number(i, 0x800) as u16).collect(),
        }
    }

    pub(super) fn palette(&self) -> Palette<'_> {
        Palette::new(self.kind, self.rows, self.cols, &self.codes, &self.codebook, &self.scale)
            .expect("the parts have the sizes of the shape")
    }
}

/// Activations of numbers that look random.
pub(super) fn activations(rows: usize, cols: usize) -> QuantBuffer {
    let mut buffer = QuantBuffer::new(rows, cols).expect("a small buffer");
    let mut view = buffer.as_rows_mut();
    for m in 0..rows {
        let row = view.row_mut(m).expect("the row exists");
        for (k, q) in row.values[..cols].iter_mut().enumerate() {
            *q = (number(m * cols + k, 255) as i32 - 127) as i8;
        }
        for (b, (scale, sum)) in row.scales.iter_mut().zip(row.sums).enumerate() {
            let block = &row.values[b * ACT_BLOCK..cols.min((b + 1) * ACT_BLOCK)];
            *sum = block.iter().map(|&q| i32::from(q)).sum();
            *scale = (1 + number(m + b, 99)) as f32 / 512.0;
        }
    }
    buffer
}
