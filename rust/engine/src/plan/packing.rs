//! Which products multiply packed rows: those of many rows with matrices that are not palettized, where the level's kernels gain by it.

use pocketlm_kernels::{DenseType, PackedRows};

use super::{Epilogue, Factor, Input, Matrix, Part, Phase, Plan, View, Weights};

/// Fewer rows take longer to decode weights for than they save, fewer inputs or outputs than packing takes. One Zen 3 core, bf16, 2,048 inputs, as
/// shares of the multiply-adds from registers, packed and not: 66 and 60 % at 32 rows, 79 and 60 at 64.
const LEAST_ROWS: usize = 32;
const LEAST_INPUTS: usize = 256;
const LEAST_OUTPUTS: usize = 256;
/// Activations from which f16 gains, whose conversion takes less than that of bf16: 67 and 91 % at 32 rows of 2,048 inputs, 78 and 86 at 128, 84 and 81 at
/// 512; 78 and 68 at 128 rows of 8,192.
const LEAST_F16: usize = 1 << 20;

/// Memory for packed rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Packing {
    /// Where in the arena they lie, in bytes.
    pub offset: usize,
    pub floats: usize,
    /// The most rows and inputs, not always of the same product.
    pub rows: usize,
    pub cols: usize,
}

impl Packing {
    /// What some phases need, with the rows that each may have; none if they pack nothing. The outer `None` says that it is more
    /// than can be counted.
    pub fn of<'a>(
        phases: impl Iterator<Item = (&'a Phase, usize)>,
        weights: &Weights,
        arena_bytes: usize,
    ) -> Option<Option<Self>> {
        let mut all: Option<Self> = None;
        for (phase, rows) in phases {
            let Phase::Linear(parts) = phase else { continue };
            let Some(view) = packed_input(parts, weights, rows) else { continue };
            let floats = PackedRows::floats(rows, view.width)?;
            let before = all.unwrap_or(Self {
                offset: arena_bytes.checked_next_multiple_of(64)?,
                floats: 0,
                rows: 0,
                cols: 0,
            });
            all = Some(Self {
                floats: floats.max(before.floats),
                rows: rows.max(before.rows),
                cols: view.width.max(before.cols),
                ..before
            });
        }
        Some(all)
    }

    /// Where they end in the arena.
    pub fn end(self) -> Option<usize> {
        self.floats.checked_mul(4)?.checked_add(self.offset)
    }
}

/// Whether so many packed rows are multiplied faster.
pub(crate) fn gains(matrix: &Matrix, rows: usize) -> bool {
    let Matrix::Dense { dtype, cols, .. } = matrix else { return false };
    let outgrown = *dtype != DenseType::F16 || rows.saturating_mul(*cols) >= LEAST_F16;
    rows >= LEAST_ROWS && *cols >= LEAST_INPUTS && outgrown
}

/// The value of so many rows that is packed for some products of a phase.
fn packed_input(parts: &[Part], weights: &Weights, rows: usize) -> Option<View> {
    let factors = |part: &Part| -> [Option<Factor>; 2] {
        let partner = match part.epilogue {
            Epilogue::Gated(up, _) => Some(up),
            _ => None,
        };
        [Some(part.factor), partner]
    };
    let mut packed = None;
    let mut outputs = 0;
    for part in parts {
        for factor in factors(part).into_iter().flatten() {
            let Input::Float(view) = factor.input else { continue };
            if gains(&weights.matrices[factor.matrix], rows) && *packed.get_or_insert(view) == view {
                outputs += part.to.width;
            }
        }
    }
    packed.filter(|_| outputs >= LEAST_OUTPUTS)
}

impl Plan {
    /// The value that a phase's workers pack before its products, if any of these gain by it.
    pub fn packed_input(&self, parts: &[Part], rows: usize) -> Option<View> {
        self.packing.and_then(|_| packed_input(parts, &self.weights, rows))
    }
}
