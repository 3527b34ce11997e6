//! Packing of rows for the products of a phase: once, by all workers.

use pocketlm_kernels::{KernelError, PackedRows};

use super::Step;
use crate::plan::View;

/// Rows that a worker claims at once: some tens of microseconds for 2,048 inputs.
const UNIT: usize = 4 * PackedRows::GROUP;

impl Step<'_, '_> {
    /// Works on the packing of a view's first rows until none are left.
    pub(super) fn pack(&self, view: View, rows: usize) -> Result<(), KernelError> {
        let overflow = || KernelError::Overflow { what: "packed rows" };
        while let Some(unit) = self.claim(rows.div_ceil(UNIT)) {
            let first = unit * UNIT;
            let count = UNIT.min(rows - first);
            // Units are whole groups, but for the last.
            let start = PackedRows::floats(first, view.width).ok_or_else(overflow)?;
            let len = PackedRows::floats(count, view.width).ok_or_else(overflow)?;
            // SAFETY: the rows were written in earlier phases, and this one writes none of a buffer that its products read. This
            // unit's place among packed rows is its own, and read behind a barrier.
            let (x, to) =
                unsafe { (self.arena.rows(view, first, count), self.arena.packed_mut(start..start + len)) };
            self.kernels.pack_rows(x.0, count, x.1, view.width, to)?;
        }
        Ok(())
    }
}
