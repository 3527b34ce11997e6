//! Working memory of a thread, allocated once and lent to kernels.

use crate::error::KernelError;
use crate::ops::by_lane;

/// 64 bytes at a 64-byte border: one cache line, one AVX-512 register.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Line(pub(crate) [u8; 64]);

const LINE_FLOATS: usize = 16;
/// Decoded weights: 64 rows × 256 inputs of int8.
pub(crate) const PANEL_LINES: usize = 256;
/// Activation rows that the kernel for many rows keeps sums for at once. A multiple of 2, 3, 4 and 6.
pub(crate) const CHUNK_ROWS: usize = 240;
/// Sums: `CHUNK_ROWS` × 64 outputs of f32.
const SUM_LINES: usize = CHUNK_ROWS * 4;

/// Working memory that kernels borrow; one per thread. About 76 KiB, so that it stays in the second-level cache, and more where it is
/// [reserved](Scratch::reserve).
#[derive(Debug)]
pub struct Scratch {
    lines: Vec<Line>,
    /// Panel and sums of products with packed rows.
    panel: Vec<Line>,
    sums: Vec<Line>,
}

impl Scratch {
    /// Allocates it.
    pub fn new() -> Self {
        Self { lines: vec![Line([0; 64]); PANEL_LINES + SUM_LINES], panel: Vec::new(), sums: Vec::new() }
    }

    /// Floats that [`Scratch::reserve`] needs; `None` where that is more than can be counted.
    pub fn floats(rows: usize, cols: usize) -> Option<usize> {
        let (panel, sums) = by_lane::floats(rows, cols)?;
        panel.checked_add(sums)
    }

    /// Makes room for products with up to `rows` packed rows of up to `cols` inputs, which then allocate nothing.
    ///
    /// # Errors
    /// [`KernelError::Memory`] or [`KernelError::Overflow`] when there is no memory for so many.
    pub fn reserve(&mut self, rows: usize, cols: usize) -> Result<(), KernelError> {
        self.by_lane(rows, cols).map(drop)
    }

    /// Memory for panel and sums of a product with packed rows.
    pub(crate) fn by_lane(
        &mut self,
        rows: usize,
        cols: usize,
    ) -> Result<(&mut [f32], &mut [f32]), KernelError> {
        const WHAT: &str = "products with packed rows";
        let (panel, sums) = by_lane::floats(rows, cols).ok_or(KernelError::Overflow { what: WHAT })?;
        for (memory, len) in [(&mut self.panel, panel), (&mut self.sums, sums)] {
            let lines = len.div_ceil(LINE_FLOATS);
            if memory.len() < lines {
                let refused = |_| KernelError::Memory { what: WHAT, bytes: lines.saturating_mul(64) };
                memory.try_reserve_exact(lines - memory.len()).map_err(refused)?;
                memory.resize(lines, Line([0; 64]));
            }
        }
        let floats = |lines: &mut Vec<Line>| {
            let len = lines.len() * LINE_FLOATS;
            // SAFETY: the memory of initialised lines, which are 64 bytes without padding, of higher alignment than floats have; any bits are a
            // float, and any float is bytes.
            unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast::<f32>(), len) }
        };
        Ok((floats(&mut self.panel), floats(&mut self.sums)))
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
