//! The products of a panel by the dot products of any instruction set: a register block of up to [`Dot::block`] rows × `W` vectors walks
//! over rows and vectors. Sums are those of the other kernels, in the same order.
//!
//! On AVX2 a vector is half a tile, so that a panel has more vectors than a register block: the rows, once read, serve all of them
//! (p4, 512 rows, one Zen 3 core, before products were joined: 173 G operations a second with a panel of one tile, 181 with four). Repeating
//! activations over vectors beforehand, so that products load them, was slower (163).

use std::ops::Range;

use super::many::{Panels, decode};
use crate::arch::Dot;
use crate::formats::{Kind, Palette, TILE};
use crate::quantized::{QuantRows, blocks};

/// Quad by quad, by the dot products of `D`.
pub(crate) struct Quads;

impl<D: Dot> Panels<D> for Quads {
    #[inline(always)]
    unsafe fn panels<const KIND: usize, const V: usize>(
        w: &Palette<'_>,
        x: &QuantRows<'_>,
        tile: usize,
        rows: Range<usize>,
        panel: *mut u8,
        sums: *mut f32,
    ) {
        // SAFETY: the caller keeps the contract of the trait, which is that of `quads`.
        unsafe { quads::<D, KIND, V>(w, x, tile, rows, panel, sums) }
    }
}

/// [`Panels::panels`] for any `D`.
///
/// # Safety
/// That of [`Panels::panels`].
#[inline(always)]
unsafe fn quads<D: Dot, const KIND: usize, const V: usize>(
    w: &Palette<'_>,
    x: &QuantRows<'_>,
    tile: usize,
    rows: Range<usize>,
    panel: *mut u8,
    sums: *mut f32,
) {
    let lanes = TILE / D::PARTS;
    let groups = w.cols.div_ceil(32);
    let group_bytes = Kind::numbered(KIND).group_bytes();
    let (block_bytes, tile_bytes) = (8 * group_bytes, groups * group_bytes);
    let codes = w.tile(tile).as_ptr();
    // SAFETY: as the caller promises. The number of rows is rounded up to 2, 3, 4 or 6 in the last register
    // block, never beyond the next multiple of `block`, which CHUNK_ROWS is one of: `sums` has room. The rows
    // read are clamped to the last one. V vectors are V / PARTS tiles, side by side in the panel; a block has
    // 8 groups at most, 64 quads of V vectors.
    unsafe {
        if w.cols == 0 {
            // No block begins the sums.
            std::slice::from_raw_parts_mut(sums, rows.len() * V * lanes).fill(0.0);
        }
        for b in 0..blocks(w.cols) {
            let here = (groups - 8 * b).min(8);
            for i in 0..V / D::PARTS {
                decode::<D, KIND, V>(w, tile + i, b, here, panel.add(i * 64));
            }
            // What is decoded next, of each tile: the block behind this one, or the first one of as many tiles behind these, unless more
            // rows than a chunk are to come. It may also reach beyond a tile, since all blocks count as whole: these are only hints.
            let next = if b + 1 < blocks(w.cols) { (b + 1) * block_bytes } else { V / D::PARTS * tile_bytes };
            let (mut first, mut asked) = (rows.start, 0);
            while first < rows.end {
                let to = sums.add((first - rows.start) * V * lanes);
                let left = first..rows.end;
                first += together::<D, KIND>(left.len());
                // Evenly over the rows, since only so many lines can be on their way.
                let until = (first.min(rows.end) - rows.start) * block_bytes / 64 / rows.len();
                let ahead = Ahead { codes: codes.wrapping_add(next), tile_bytes, lines: asked..until };
                if const { D::PARTS == 2 } {
                    some_rows::<D, KIND, V, 2>(x, left, (b, here), panel, to, ahead);
                } else {
                    some_rows::<D, KIND, V, V>(x, left, (b, here), panel, to, ahead);
                }
                asked = until;
            }
        }
    }
}

/// What to ask for while computing: lines of each of a panel's tiles.
struct Ahead {
    codes: *const u8,
    tile_bytes: usize,
    lines: Range<usize>,
}

/// How many rows go through a register block together, of so many left. Where three fit well and four just so, four serve to leave no
/// row without others.
#[inline(always)]
fn together<D: Dot, const KIND: usize>(left: usize) -> usize {
    match (D::block::<KIND>(), left) {
        (_, ..3) | (2, _) => 2,
        (3, 5) => 3,
        (3, _) => {
            if left.is_multiple_of(3) {
                3
            } else {
                4
            }
        }
        (4, _) | (_, ..5) => 4,
        _ => 6,
    }
}

/// Some rows, as many as [`together`] says, × the `V` vectors of a panel, `W` at a time: all of them while the rows are in the first-level
/// cache.
///
/// # Safety
/// As for [`block`], for `V` vectors; `W` must divide `V`.
#[inline(always)]
unsafe fn some_rows<D: Dot, const KIND: usize, const V: usize, const W: usize>(
    x: &QuantRows<'_>,
    rows: Range<usize>,
    at: (usize, usize),
    panel: *const u8,
    to: *mut f32,
    ahead: Ahead,
) {
    let (vector, lanes) = (64 / D::PARTS, TILE / D::PARTS);
    for v in (0..V).step_by(W) {
        // SAFETY: as the caller promises: v is below V, of which vectors the panel and `to` have that many.
        unsafe {
            let (panel, to) = (panel.add(v * vector), to.add(v * lanes));
            match together::<D, KIND>(rows.len()) {
                2 => block::<D, KIND, V, W, 2>(x, &rows, at, panel, to),
                3 if D::block::<KIND>() == 3 => block::<D, KIND, V, W, 3>(x, &rows, at, panel, to),
                6 if D::block::<KIND>() == 6 => block::<D, KIND, V, W, 6>(x, &rows, at, panel, to),
                _ => block::<D, KIND, V, W, 4>(x, &rows, at, panel, to),
            }
            if const { D::AHEAD_OF_STREAMS > 0 } {
                for tile in v / D::PARTS..(v + W).div_ceil(D::PARTS) {
                    for line in ahead.lines.clone() {
                        D::prefetch(ahead.codes.wrapping_add(tile * ahead.tile_bytes + 64 * line));
                    }
                }
            }
        }
    }
}

/// One register block: the first `R` of `rows` × `W` of a panel's `V` vectors over one activation block, `at` that block and its
/// number of groups.
///
/// # Safety
/// Needs the instructions of `D`; `rows` must be x's and not none, and hold 32 × the number of groups values from the block's start
/// on; the panel must hold 8 quads for each group, `V` vectors apart, and `to` be valid for reading and writing R × `W` vectors
/// of floats, rows `V` apart, which hold the sums of the blocks before, if there are any.
#[inline(always)]
unsafe fn block<D: Dot, const KIND: usize, const V: usize, const W: usize, const R: usize>(
    x: &QuantRows<'_>,
    rows: &Range<usize>,
    (b, groups): (usize, usize),
    panel: *const u8,
    to: *mut f32,
) {
    let n_blocks = blocks(x.cols);
    let vector = 64 / D::PARTS;
    let lanes = TILE / D::PARTS;
    let row: [usize; R] = std::array::from_fn(|r| (rows.start + r).min(rows.end - 1));
    // SAFETY: as the caller promises: rows are clamped to the last; each of the 2 × groups steps reads 16
    // values of a row and four quads of the panel; x has a scale and a sum for each row and block.
    unsafe {
        let values: [*const i8; R] = row.map(|r| x.values.as_ptr().add(r * x.stride + b * 256));
        let mut sums = [[D::sum(0); W]; R];
        for (sums, r) in sums.iter_mut().zip(row) {
            // A counted loop: a closure would not be inlined into code with the instructions.
            let total = *x.sums.get_unchecked(r * n_blocks + b);
            *sums = [D::sum(total.wrapping_mul(-D::bias::<KIND>())); W];
        }
        for step in 0..groups * 2 {
            let quads = panel.add(step * 4 * V * vector);
            let acts: [D::X; R] = values.map(|p| D::acts(p.add(step * 16)));
            if D::joins::<KIND>() {
                two_by_two::<D, KIND, V, W, R>(&mut sums, quads, acts);
            } else {
                one_by_one::<D, KIND, V, W, R>(&mut sums, quads, acts);
            }
        }
        for (r, sums) in sums.into_iter().enumerate() {
            let scale = D::splat(*x.scales.get_unchecked(row[r] * n_blocks + b));
            for (v, sum) in sums.into_iter().enumerate() {
                let at = to.add((r * V + v) * lanes);
                let before = if b == 0 { D::splat(0.0) } else { D::load_f(at) };
                D::store_f(at, D::fma(D::float(sum), scale, before));
            }
        }
    }
}

/// Two quads at a time, whose products are joined before they are widened: the vectors of both meet each row. Four at a time, of weights of 2
/// or 3 bits, would be widened half as often, but `W` vectors of four quads leave no registers for sums, so that activations
/// would be loaded for each vector: that took 1.00 to 1.07 times as long (512 rows, one Zen 3 core).
///
/// # Safety
/// Needs the instructions of `D`; `quads` must be valid for reading four times `W` vectors, `V` apart, and `acts` as [`Dot::dot1`] says.
#[inline(always)]
unsafe fn two_by_two<D: Dot, const KIND: usize, const V: usize, const W: usize, const R: usize>(
    sums: &mut [[D::Sum; W]; R],
    quads: *const u8,
    acts: [D::X; R],
) {
    let vector = 64 / D::PARTS;
    // SAFETY: as the caller promises; four quads of W vectors, V apart, are read.
    unsafe {
        // Written out, since the number of a quad is a constant of the instruction.
        let w: [[D::V; 2]; W] = std::array::from_fn(|v| {
            let at = quads.add(v * vector);
            [D::load(at), D::load(at.add(V * vector))]
        });
        for (sums, x) in sums.iter_mut().zip(acts) {
            for (sum, w) in sums.iter_mut().zip(w) {
                *sum = D::dot2::<KIND, 0>(*sum, w, x);
            }
        }
        let w: [[D::V; 2]; W] = std::array::from_fn(|v| {
            let at = quads.add((2 * V + v) * vector);
            [D::load(at), D::load(at.add(V * vector))]
        });
        for (sums, x) in sums.iter_mut().zip(acts) {
            for (sum, w) in sums.iter_mut().zip(w) {
                *sum = D::dot2::<KIND, 2>(*sum, w, x);
            }
        }
    }
}

/// What [`two_by_two`] computes, quad by quad: the vectors of one meet each row.
///
/// # Safety
/// That of [`two_by_two`].
#[inline(always)]
unsafe fn one_by_one<D: Dot, const KIND: usize, const V: usize, const W: usize, const R: usize>(
    sums: &mut [[D::Sum; W]; R],
    quads: *const u8,
    acts: [D::X; R],
) {
    let vector = 64 / D::PARTS;
    // SAFETY: as the caller promises; four quads of W vectors, V apart, are read.
    unsafe {
        // Written out, since the number of a quad is a constant of the instruction.
        let w: [D::V; W] = std::array::from_fn(|v| D::load(quads.add(v * vector)));
        for (sums, x) in sums.iter_mut().zip(acts) {
            for (sum, w) in sums.iter_mut().zip(w) {
                *sum = D::dot1::<KIND, 0>(*sum, w, x);
            }
        }
        let w: [D::V; W] = std::array::from_fn(|v| D::load(quads.add((V + v) * vector)));
        for (sums, x) in sums.iter_mut().zip(acts) {
            for (sum, w) in sums.iter_mut().zip(w) {
                *sum = D::dot1::<KIND, 1>(*sum, w, x);
            }
        }
        let w: [D::V; W] = std::array::from_fn(|v| D::load(quads.add((2 * V + v) * vector)));
        for (sums, x) in sums.iter_mut().zip(acts) {
            for (sum, w) in sums.iter_mut().zip(w) {
                *sum = D::dot1::<KIND, 2>(*sum, w, x);
            }
        }
        let w: [D::V; W] = std::array::from_fn(|v| D::load(quads.add((3 * V + v) * vector)));
        for (sums, x) in sums.iter_mut().zip(acts) {
            for (sum, w) in sums.iter_mut().zip(w) {
                *sum = D::dot1::<KIND, 3>(*sum, w, x);
            }
        }
    }
}
