//! Rows of activations in the order in which [`super::by_lane`] reads them.

// Counted loops over arrays of registers: they unroll reliably, and the index names the register.
#![allow(clippy::needless_range_loop)]

use crate::error::{KernelError, expect_len};
use crate::simd::{LANES, Simd};

/// Rows that go through a register block together: with 16 outputs their sums fill twelve of AVX2's registers, which leaves two for
/// weights and one for an activation.
pub(super) const GROUP: usize = 6;
/// Most inputs of one lane that are multiplied before the next lane's: weights of 16 outputs × 128 inputs are 8 KiB, a quarter
/// of a first-level cache, and those of all lanes a quarter of a second-level one.
const STEPS: usize = 128;
/// Floats between the pieces of two lanes. Without them pieces would lie a multiple of 4 KiB apart, in the same few places of a cache.
const GAP: usize = 16;

/// Rows of activations, packed.
///
/// They are groups of six rows, each of whose inputs k ≡ l (mod 16) lie side by side for each l: `[groups][blocks of 128 × 16 inputs][16
/// lanes][inputs of the lane][6 rows]`. The last group repeats the last row; inputs beyond the last are 0.
#[derive(Debug, Clone, Copy)]
pub struct PackedRows<'a> {
    pub(super) shape: Shape,
    pub(super) data: &'a [f32],
}

impl<'a> PackedRows<'a> {
    /// Rows of a group: packing may begin at any multiple.
    pub const GROUP: usize = GROUP;

    /// Wraps what [`crate::Kernels::pack_rows`] wrote.
    ///
    /// # Errors
    /// When the length is not that of [`PackedRows::floats`].
    pub fn new(rows: usize, cols: usize, data: &'a [f32]) -> Result<Self, KernelError> {
        let floats = Self::floats(rows, cols).ok_or(KernelError::Overflow { what: "packed rows" })?;
        expect_len("packed rows", data.len(), floats)?;
        Ok(Self { shape: Shape::new(rows, cols), data })
    }

    /// Floats that `rows` × `cols` activations take: the same for each group that is begun. `None` where that is more than can be counted.
    pub fn floats(rows: usize, cols: usize) -> Option<usize> {
        Shape::new(rows, cols).group().checked_mul(rows.div_ceil(GROUP))
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.shape.rows
    }

    /// Number of inputs of each.
    pub fn cols(&self) -> usize {
        self.shape.cols
    }
}

/// How packed rows lie in memory. All lengths are in floats.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    pub rows: usize,
    pub cols: usize,
    pub groups: usize,
    /// Inputs of each lane, the last one filled up.
    pub steps: usize,
    /// Inputs of each lane in a block.
    pub block: usize,
}

impl Shape {
    pub fn new(rows: usize, cols: usize) -> Self {
        let steps = cols.div_ceil(LANES);
        Self { rows, cols, groups: rows.div_ceil(GROUP), steps, block: steps.min(STEPS) }
    }

    /// From one lane of a group to the next.
    pub fn lane(self) -> usize {
        self.block * GROUP + GAP
    }

    /// From one lane of a panel to the next.
    pub fn panel_lane(self) -> usize {
        self.block * LANES + GAP
    }

    /// From one block of a group to the next.
    pub fn block(self) -> usize {
        LANES * self.lane()
    }

    /// From one group to the next; `usize::MAX` where that is more than can be counted.
    pub fn group(self) -> usize {
        self.steps.div_ceil(self.block.max(1)).saturating_mul(self.block())
    }
}

/// Packs `rows` rows of `cols` inputs, one or more of both, which begin `stride` apart in `x`.
#[inline(always)]
fn pack<S: Simd>(s: S, x: &[f32], rows: usize, stride: usize, cols: usize, to: &mut [f32]) {
    let shape = Shape::new(rows, cols);
    assert!(rows > 0 && cols > 0 && x.len() >= (rows - 1) * stride + cols);
    assert!(to.len() >= shape.groups * shape.group());
    for group in 0..shape.groups {
        let row: [usize; GROUP] = std::array::from_fn(|m| (group * GROUP + m).min(rows - 1) * stride);
        for step in 0..shape.steps {
            let first = step * LANES;
            let mut values = [s.zero(); 8];
            for m in 0..GROUP {
                let at = row[m] + first;
                values[m] = if first + LANES <= cols {
                    // SAFETY: row[m] is the start of a row, which has cols elements, 16 of them from `first` on.
                    unsafe { s.f32_at(x.as_ptr().add(at).cast()) }
                } else {
                    s.load_part(&x[at..row[m] + cols])
                };
            }
            let block = group * shape.group() + step / shape.block * shape.block();
            let at = block + step % shape.block * GROUP;
            // SAFETY: lanes of a block lie `lane()` apart and have room for `block` times six floats and the gap, which takes the
            // two of each eight that are beyond the last step's; those of other steps are overwritten by the next step.
            unsafe { s.store_columns(to.as_mut_ptr().add(at), shape.lane(), values) };
        }
    }
}

instantiate! {
    PackRows, "f32", "rows" => pack_rows = pack,
        (x: &[f32], rows: usize, stride: usize, cols: usize, to: &mut [f32]);
}
