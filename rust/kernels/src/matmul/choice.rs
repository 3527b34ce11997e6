//! Which of two kernels multiplies prompts, long ones and those of sixteen rows or less: measured on the machine, since the better one
//! depends on its caches and its ports.
//!
//! Both give the same bits, so the choice changes nothing but time. On one Zen 4 core with AVX-512 VBMI, 512 rows, registers
//! won by 2 to 3 % at p2v, p4 and p8, panels by 2 to 6 % at p3 and p2; with AVX2 panels won (p4: 8 %). On one Zen 3 core, sixteen rows
//! from memory, panels won at p4 (203 and 185 G operations/s).

use std::time::{Duration, Instant};

use crate::formats::{Kind, Palette, TILE};
use crate::quantized::QuantBuffer;
use crate::registry::MatmulPaletteFn;
use crate::scratch::Scratch;

/// The product that is measured: outputs and inputs of a part of a prompt's work, two blocks of a panel. Microseconds, so that some are not disturbed.
const OUTPUTS: usize = 4 * TILE;
const INPUTS: usize = 512;
/// Alternating measurements of each, at least, and the time that they take at least; the best counts, since others were disturbed.
const ROUNDS: usize = 5;
const TIME: Duration = Duration::from_micros(200);

/// A kernel for many rows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Prompts {
    pub kernel: MatmulPaletteFn,
    pub name: &'static str,
}

/// The faster kernel for so many rows of `kind`. Takes less than a millisecond.
///
/// # Safety
/// The level of both kernels must be available, and both must be for weights of `kind`.
pub(crate) unsafe fn fastest(
    kind: Kind,
    rows: usize,
    registers: MatmulPaletteFn,
    panels: MatmulPaletteFn,
) -> Prompts {
    let panels = Prompts { kernel: panels, name: "panels" };
    let registers = Prompts { kernel: registers, name: "registers" };
    let (Ok(code_bytes), Ok(x)) = (kind.code_bytes(OUTPUTS, INPUTS), QuantBuffer::new(rows, INPUTS)) else {
        return panels;
    };
    // Times do not depend on the values.
    let (codes, codebook) = (vec![0; code_bytes], vec![0; OUTPUTS / TILE * kind.codebook_len()]);
    let Ok(w) = Palette::new(kind, OUTPUTS, INPUTS, &codes, &codebook, &[0; OUTPUTS]) else { return panels };
    let (mut scratch, mut out) = (Scratch::new(), vec![0.0; rows * OUTPUTS]);
    let (mut best, mut round, start) = ([Duration::MAX; 2], 0, Instant::now());
    while round < ROUNDS || start.elapsed() < TIME {
        round += 1;
        for (best, choice) in best.iter_mut().zip([panels, registers]) {
            let begun = Instant::now();
            // SAFETY: the caller promises the level and the kind; weight, activations and output have sizes
            // that belong together, and there are rows.
            unsafe { (choice.kernel)(&w, &x.as_rows(), 0..OUTPUTS / TILE, &mut scratch, &mut out) };
            *best = begun.elapsed().min(*best);
        }
    }
    if best[1] < best[0] { registers } else { panels }
}
