//! Products of many rows with weights that are not palettized, one of the sixteen sums at a time.
//!
//! Sum l of a dot product takes the inputs k ≡ l (mod 16) in order (see [`super::dense_tile`]). For six rows × 16 outputs that is a sum of outer
//! products, whose factors are six activations, each repeated in a vector, and the weights of 16 outputs: 12 of AVX2's registers hold sums, and each
//! vector of weights, decoded and transposed once, serves all rows. The fixed tree then adds whole tiles. Every element is computed
//! in the order of [`super::dense_tile`], so that the bits are the same.

// Counted loops over arrays of registers: they unroll reliably, and the index names the register.
#![allow(clippy::needless_range_loop)]

use std::ops::Range;

use super::dense_tile::{Bf16, Element, F16, F32, LINE, part};
use super::packed::{GROUP, PackedRows, Shape};
use crate::formats::Dense;
use crate::simd::{LANES, Simd};

/// Outputs that are computed together, one in each place of a vector.
const OUTPUTS: usize = LANES;
/// Floats of the sums of a group.
const TILE_LEN: usize = GROUP * OUTPUTS;

/// Floats that products with so many packed rows need for a panel of decoded weights, `[16 lanes][inputs of the lane][16 outputs]`, and for
/// sums, `[16 lanes][groups][6 rows][16 outputs]`. `None` where that is more than can be counted.
pub(crate) fn floats(rows: usize, cols: usize) -> Option<(usize, usize)> {
    let shape = Shape::new(rows, cols);
    Some((LANES * shape.panel_lane(), shape.groups.checked_mul(LANES * TILE_LEN)?))
}

/// The outputs `n` of all rows of x, which have inputs, with memory for panel and sums.
#[inline(always)]
fn product<S: Simd, E: Element>(
    s: S,
    w: &Dense<'_>,
    x: &PackedRows<'_>,
    n: Range<usize>,
    (panel, sums): (&mut [f32], &mut [f32]),
    out: &mut [f32],
) {
    let PackedRows { shape, data } = *x;
    let width = n.len();
    assert!(
        shape.cols == w.cols && w.cols > 0 && n.end <= w.rows && w.data.len() == w.rows * w.cols * E::SIZE
    );
    assert!(data.len() >= shape.groups * shape.group());
    assert!(panel.len() >= LANES * shape.panel_lane() && sums.len() >= LANES * shape.groups * TILE_LEN);
    for first in n.clone().step_by(OUTPUTS) {
        let outputs = first..n.end.min(first + OUTPUTS);
        for (block, start) in (0..shape.steps).step_by(shape.block).enumerate() {
            let steps = shape.block.min(shape.steps - start);
            decode::<S, E>(s, w, outputs.clone(), (start, steps), shape, panel);
            // SAFETY: the lengths were checked above: of panel and sums for all lanes and groups, of data for all blocks.
            unsafe { multiply(s, shape, (block, steps), data, panel, sums) };
        }
        for row in 0..shape.rows {
            let y = &mut out[row * width + first - n.start..][..outputs.len()];
            s.store_part(y, tree(s, sums, shape.groups, row));
        }
    }
}

/// Decodes some steps of a tile of outputs into the panel: for each lane and step, the weights of all outputs. The last output stands for those
/// beyond it; inputs beyond the last are 0.
#[inline(always)]
fn decode<S: Simd, E: Element>(
    s: S,
    w: &Dense<'_>,
    outputs: Range<usize>,
    (start, steps): (usize, usize),
    shape: Shape,
    panel: &mut [f32],
) {
    let row_bytes = w.cols * E::SIZE;
    for half in 0..2 {
        let row: [usize; 8] =
            std::array::from_fn(|i| (outputs.start + 8 * half + i).min(outputs.end - 1) * row_bytes);
        for step in 0..steps {
            let first = (start + step) * LANES;
            let at = first * E::SIZE;
            let mut values = [s.zero(); 8];
            for i in 0..8 {
                values[i] = if first + LANES <= w.cols {
                    if step.is_multiple_of((LINE / (LANES * E::SIZE)).max(1)) {
                        // What is decoded next: the block behind this one, or the next outputs' first.
                        let ahead = if start + steps < shape.steps {
                            steps * LANES * E::SIZE
                        } else {
                            OUTPUTS * row_bytes
                        };
                        s.prefetch(w.data.as_ptr().wrapping_add(row[i] + at + ahead));
                    }
                    // SAFETY: row[i] is the start of one of w's rows, which have cols elements, 16 of them from `first` on.
                    unsafe { E::at(s, w.data.as_ptr().add(row[i] + at)) }
                } else {
                    part::<S, E>(s, &w.data[row[i] + at..row[i] + row_bytes])
                };
            }
            let to = &mut panel[step * OUTPUTS + 8 * half..][..(LANES - 1) * shape.panel_lane() + 8];
            // SAFETY: the slice has eight places in each lane, which lie `panel_lane()` apart.
            unsafe { s.store_columns(to.as_mut_ptr(), shape.panel_lane(), values) };
        }
    }
}

/// Adds the products of a block to the sums of all lanes and groups, which the first block begins.
///
/// # Safety
/// `data`, `panel` and `sums` must have the lengths of the shape, which must have the block, and `steps` must be no more than a block has.
#[inline(always)]
unsafe fn multiply<S: Simd>(
    s: S,
    shape: Shape,
    (block, steps): (usize, usize),
    data: &[f32],
    panel: &[f32],
    sums: &mut [f32],
) {
    // Lanes are the outer loop: a lane's weights stay in the first-level cache for all groups.
    for lane in 0..LANES {
        for group in 0..shape.groups {
            let at = group * shape.group() + block * shape.block() + lane * shape.lane();
            // SAFETY: as the caller promises: the group's lane has `steps` times six floats and the panel's lane `steps` times 16;
            // a group has TILE_LEN sums in each lane.
            unsafe {
                let tile = sums.as_mut_ptr().add((lane * shape.groups + group) * TILE_LEN);
                let x = data.as_ptr().add(at);
                let next = x.wrapping_add(shape.group());
                let w = panel.as_ptr().add(lane * shape.panel_lane());
                let mut acc = [s.zero(); GROUP];
                if block > 0 {
                    for m in 0..GROUP {
                        acc[m] = s.f32_at(tile.add(m * OUTPUTS).cast());
                    }
                }
                outer(s, &mut acc, w, x, next, steps);
                for m in 0..GROUP {
                    s.store(&mut *tile.add(m * OUTPUTS).cast(), acc[m]);
                }
            }
        }
    }
}

/// Adds `steps` outer products of six activations and 16 outputs' weights, while it asks for as many activations at `next`.
///
/// # Safety
/// `w` must be valid for reading `steps` times 16 floats and `x` for `steps` times six; `next` may be anything.
#[inline(always)]
unsafe fn outer<S: Simd>(
    s: S,
    acc: &mut [S::F; GROUP],
    mut w: *const f32,
    mut x: *const f32,
    mut next: *const f32,
    steps: usize,
) {
    /// Steps whose activations are a line and a half, written out since the loop's own instructions show.
    const UNROLLED: usize = 4;
    for _ in 0..steps / UNROLLED {
        s.prefetch(next.cast());
        s.prefetch(next.wrapping_add(LINE / 4).cast());
        // SAFETY: as the caller promises.
        unsafe {
            step(s, acc, w, x);
            step(s, acc, w.add(OUTPUTS), x.add(GROUP));
            step(s, acc, w.add(2 * OUTPUTS), x.add(2 * GROUP));
            step(s, acc, w.add(3 * OUTPUTS), x.add(3 * GROUP));
            (w, x) = (w.add(UNROLLED * OUTPUTS), x.add(UNROLLED * GROUP));
        }
        next = next.wrapping_add(UNROLLED * GROUP);
    }
    for i in 0..steps % UNROLLED {
        // SAFETY: as the caller promises.
        unsafe { step(s, acc, w.add(i * OUTPUTS), x.add(i * GROUP)) };
    }
}

/// One outer product.
///
/// # Safety
/// `w` must be valid for reading 16 floats and `x` for six.
#[inline(always)]
unsafe fn step<S: Simd>(s: S, acc: &mut [S::F; GROUP], w: *const f32, x: *const f32) {
    // SAFETY: as the caller promises.
    unsafe {
        let weights = s.f32_at(w.cast());
        for m in 0..GROUP {
            acc[m] = s.fma(weights, s.splat(*x.add(m)), acc[m]);
        }
    }
}

/// The results of a row: the sums of its lanes, added as [`Simd::hsum`] does.
#[inline(always)]
fn tree<S: Simd>(s: S, sums: &[f32], groups: usize, row: usize) -> S::F {
    let mut lane = [s.zero(); LANES];
    for l in 0..LANES {
        let at = (l * groups + row / GROUP) * TILE_LEN + row % GROUP * OUTPUTS;
        lane[l] = s.load_part(&sums[at..at + OUTPUTS]);
    }
    for half in [8, 4, 2, 1] {
        for l in 0..half {
            lane[l] = s.add(lane[l], lane[l + half]);
        }
    }
    lane[0]
}

instantiate! {
    MatmulPacked, "f32", "many" => packed_f32 = product::<_, F32>,
        (w: &Dense<'_>, x: &PackedRows<'_>, n: Range<usize>, memory: (&mut [f32], &mut [f32]), out: &mut [f32]);
    MatmulPacked, "f16", "many" => packed_f16 = product::<_, F16>,
        (w: &Dense<'_>, x: &PackedRows<'_>, n: Range<usize>, memory: (&mut [f32], &mut [f32]), out: &mut [f32]);
    MatmulPacked, "bf16", "many" => packed_bf16 = product::<_, Bf16>,
        (w: &Dense<'_>, x: &PackedRows<'_>, n: Range<usize>, memory: (&mut [f32], &mut [f32]), out: &mut [f32]);
}
