//! Which products multiply packed rows: those of many rows with matrices that are not palettized, where the level's kernels
//! gain by it.

use pocketlm_kernels::{DenseType, PackedRows};

use super::{Epilogue, Input, Matrix, Part, Phase, Plan, View, Weights};

/// Fewer rows take longer to decode weights for than they save, fewer inputs or outputs than packing takes. One Zen 3 core,
/// bf16, 2,048 inputs, as shares of the multiply-adds from registers, packed and not: 66 and 60 % at 32 rows, 76 and 60 at 64.
const LEAST_ROWS: usize = 32;
const LEAST_INPUTS: usize = 256;
const LEAST_OUTPUTS: usize = 256;
/// Activations from which f16 gains, whose conversion takes less than that of bf16: 66 and 87 % at 32 rows of 2,048 inputs,
/// 81 and 84 at 128, 82 and 81 at 512; 78 and 68 at 128 rows of 8,192.
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
            // Of several values that could be packed a step of fewer rows may choose another.
            for (view, _) in gaining(parts, weights, rows) {
                let floats = PackedRows::floats(rows, view.width)?;
                let offset = arena_bytes.checked_next_multiple_of(64)?;
                let before = all.unwrap_or(Self { offset, floats: 0, rows: 0, cols: 0 });
                all = Some(Self {
                    floats: floats.max(before.floats),
                    rows: rows.max(before.rows),
                    cols: view.width.max(before.cols),
                    ..before
                });
            }
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

/// The values that products of a phase read which gain, with their outputs, in the order of these products.
fn gaining(parts: &[Part], weights: &Weights, rows: usize) -> impl Iterator<Item = (View, usize)> {
    let factors = parts.iter().flat_map(|part| {
        let partner = match part.epilogue {
            Epilogue::Gated(up, _) => Some(up),
            _ => None,
        };
        [Some(part.factor), partner].into_iter().flatten().map(|factor| (factor, part.to.width))
    });
    factors.filter_map(move |(factor, outputs)| match factor.input {
        Input::Float(view) if gains(&weights.matrices[factor.matrix], rows) => Some((view, outputs)),
        _ => None,
    })
}

/// The first of these values, if the outputs that it is for are enough.
fn packed_input(parts: &[Part], weights: &Weights, rows: usize) -> Option<View> {
    let (first, _) = gaining(parts, weights, rows).next()?;
    let of_first = gaining(parts, weights, rows).filter(|(view, _)| *view == first);
    (of_first.map(|(_, outputs)| outputs).sum::<usize>() >= LEAST_OUTPUTS).then_some(first)
}

impl Plan {
    /// The value that a phase's workers pack before its products, if any of these gain by it.
    pub fn packed_input(&self, parts: &[Part], rows: usize) -> Option<View> {
        self.packing.filter(|_| rows >= LEAST_ROWS).and_then(|_| packed_input(parts, &self.weights, rows))
    }
}
