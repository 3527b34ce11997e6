//! Working memory of a thread, allocated once and lent to kernels.

/// 64 bytes at a 64-byte border: one cache line, one AVX-512 register.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Line(pub(crate) [u8; 64]);

/// Decoded weights: 64 rows × 256 inputs of int8.
pub(crate) const PANEL_LINES: usize = 256;
/// Activation rows that the kernel for many rows keeps sums for at once. A multiple of 2, 3, 4 and 6.
pub(crate) const CHUNK_ROWS: usize = 240;
/// Sums: `CHUNK_ROWS` × 64 outputs of f32.
const SUM_LINES: usize = CHUNK_ROWS * 4;

/// Working memory that kernels borrow; one per thread. About 76 KiB, so that it stays in the second-level cache.
#[derive(Debug)]
pub struct Scratch {
    lines: Vec<Line>,
}

impl Scratch {
    /// Allocates it.
    pub fn new() -> Self {
        Self { lines: vec![Line([0; 64]); PANEL_LINES + SUM_LINES] }
    }

    /// The panel of decoded weights and the float sums, as pointers to 64-byte aligned memory.
    pub(crate) fn parts(&mut self) -> (*mut u8, *mut f32) {
        let (panel, sums) = self.lines.split_at_mut(PANEL_LINES);
        (panel.as_mut_ptr().cast(), sums.as_mut_ptr().cast())
    }
}

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
}
