//! Many rows of activations: a panel of weights is decoded once and used for all of them.
//!
//! A panel is up to four tiles × one activation block of 256 inputs, 16 KiB of int8, so that it stays in the
//! first-level cache. For each panel a register block of `BLOCK` rows × `V` vectors walks over the rows; float sums
//! wait in scratch memory between blocks. Sums are those of the other kernels, in the same order.

use std::ops::Range;

use crate::arch::Dot;
use crate::formats::{Kind, Palette, TILE};
use crate::quantized::{QuantRows, blocks};
use crate::scratch::{CHUNK_ROWS, Scratch};

/// How the products of a panel are computed, once its rows and tiles are chosen.
pub(crate) trait Panels<D: Dot> {
    /// The float sums of `rows` × the tiles that `V` vectors hold from `tile` on, block by block, row by row in `sums`.
    ///
    /// # Safety
    /// Needs the instructions of `D` and of the type, and those ready to be used. `KIND` must be the number
    /// of w's kind and x have w's inputs; the tiles must be w's; `rows` must be x's, one or more and at most
    /// `CHUNK_ROWS`; `panel` and `sums` must be those of a [`Scratch`] that nothing else uses; `V` must be 1,
    /// 2 or 4 and a multiple of `D::PARTS`.
    unsafe fn panels<const KIND: usize, const V: usize>(
        w: &Palette<'_>,
        x: &QuantRows<'_>,
        tile: usize,
        rows: Range<usize>,
        panel: *mut u8,
        sums: *mut f32,
    );
}

/// All rows of x × the outputs of `tiles`.
///
/// # Safety
/// Needs the instructions of `D` and `P`, ready to be used; `KIND` must be the number of w's kind, x must
/// have w's inputs, and the tiles must be w's.
#[inline(always)]
pub(crate) unsafe fn many<D: Dot, P: Panels<D>, const KIND: usize>(
    w: &Palette<'_>,
    x: &QuantRows<'_>,
    tiles: Range<usize>,
    scratch: &mut Scratch,
    out: &mut [f32],
) {
    let mut at = tiles.start;
    while at < tiles.end {
        let left = tiles.end - at;
        // Vectors of a panel: 1, 2 or 4, whether a vector is a tile or part of one.
        let count = match D::PARTS {
            1 if left >= 4 => 4,
            1 if left >= 2 => 2,
            _ => 1,
        };
        let mut first = 0;
        while first < x.rows {
            let rows = first..x.rows.min(first + CHUNK_ROWS);
            let (panel, sums) = scratch.parts();
            // SAFETY: as the caller promises. The vectors of a panel are those of `count` tiles, which are
            // left; scratch memory is borrowed, and holds a panel of 4 × 64 lines and CHUNK_ROWS × 64 sums;
            // `panels` has written those of `rows`.
            unsafe {
                if const { D::PARTS == 2 } {
                    P::panels::<KIND, 2>(w, x, at, rows.clone(), panel, sums);
                } else if const { D::PARTS == 4 } || count == 4 {
                    P::panels::<KIND, 4>(w, x, at, rows.clone(), panel, sums);
                } else if count == 2 {
                    P::panels::<KIND, 2>(w, x, at, rows.clone(), panel, sums);
                } else {
                    P::panels::<KIND, 1>(w, x, at, rows.clone(), panel, sums);
                }
                finish::<D>(w, at..at + count, &tiles, rows.clone(), sums, out);
            }
            first = rows.end;
        }
        at += count;
    }
}

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
    // SAFETY: as the caller promises. The number of rows is rounded up to 2, 4 or 6 in the last register
    // block, never beyond the next multiple of BLOCK, which CHUNK_ROWS is one of: `sums` has room. The rows
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
            let mut first = rows.start;
            while first < rows.end {
                let left = rows.end - first;
                let to = sums.add((first - rows.start) * V * lanes);
                let last = rows.end - 1;
                first += match left {
                    _ if const { D::BLOCK == 2 } => {
                        block::<D, KIND, V, 2>(x, first, last, b, here, panel, to)
                    }
                    1 | 2 => block::<D, KIND, V, 2>(x, first, last, b, here, panel, to),
                    _ if const { D::BLOCK == 4 } => {
                        block::<D, KIND, V, 4>(x, first, last, b, here, panel, to)
                    }
                    3 | 4 => block::<D, KIND, V, 4>(x, first, last, b, here, panel, to),
                    _ => block::<D, KIND, V, 6>(x, first, last, b, here, panel, to),
                };
            }
        }
    }
}

/// Decodes one activation block of a tile into its columns of the panel: quad by quad, `V` vectors each.
///
/// # Safety
/// Needs the instructions of `D`; `KIND` must be the number of w's kind; the tile must have `groups` groups
/// of 32 inputs from the block's start on, and the panel room for `V` vectors for each of their quads, less
/// those before this tile's.
#[inline(always)]
pub(crate) unsafe fn decode<D: Dot, const KIND: usize, const V: usize>(
    w: &Palette<'_>,
    tile: usize,
    block: usize,
    groups: usize,
    panel: *mut u8,
) {
    let vector = 64 / D::PARTS;
    let group_bytes = Kind::numbered(KIND).group_bytes();
    // SAFETY: as the caller promises: the tile has the groups, of the size that KIND says, and the codebook
    // of a tile the kind's entries; of the V vectors for each quad the first PARTS are written.
    unsafe {
        let codes = w.tile(tile).as_ptr().add(block * 8 * group_bytes);
        let table = D::table::<KIND>(w.tile_codebook(tile).as_ptr());
        for g in 0..groups {
            for p in 0..D::PARTS {
                let group = codes.add(g * group_bytes + p * vector);
                let to = panel.add((g * 8 * V + p) * vector);
                for (q, v) in D::decode::<KIND, 0>(table, group).into_iter().enumerate() {
                    D::store(to.add(q * V * vector), v);
                }
                for (q, v) in D::decode::<KIND, 1>(table, group).into_iter().enumerate() {
                    D::store(to.add((4 + q) * V * vector), v);
                }
            }
        }
    }
}

/// One register block: `R` rows × `V` vectors over one activation block. Returns R.
///
/// # Safety
/// Needs the instructions of `D`; `last` must be a row of x, whose rows hold 32 × `groups` values from the
/// block's start on; the panel must hold 8 × `groups` quads of `V` vectors, and `to` be valid for reading and
/// writing R × `V` vectors of floats, which hold the sums of the blocks before `b`, if there are any.
#[inline(always)]
unsafe fn block<D: Dot, const KIND: usize, const V: usize, const R: usize>(
    x: &QuantRows<'_>,
    first: usize,
    last: usize,
    b: usize,
    groups: usize,
    panel: *const u8,
    to: *mut f32,
) -> usize {
    let n_blocks = blocks(x.cols);
    let vector = 64 / D::PARTS;
    let lanes = TILE / D::PARTS;
    let row: [usize; R] = std::array::from_fn(|r| (first + r).min(last));
    // Counted loops rather than closures, which would not be inlined into code with the instructions.
    // SAFETY: as the caller promises: rows are clamped to `last`; each of the 2 × groups steps reads 16
    // values of a row and four quads of the panel; x has a scale and a sum for each row and block.
    unsafe {
        let values: [*const i8; R] = row.map(|r| x.values.as_ptr().add(r * x.stride + b * 256));
        let mut sums = [[D::sum(0); V]; R];
        for r in 0..R {
            let total = *x.sums.get_unchecked(row[r] * n_blocks + b);
            sums[r] = [D::sum(total.wrapping_mul(-D::bias::<KIND>())); V];
        }
        for step in 0..groups * 2 {
            let quad = panel.add(step * 4 * V * vector);
            let acts: [D::X; R] = values.map(|p| D::acts(p.add(step * 16)));
            // One line per quad, since the number of a quad is a constant of the instruction.
            let w: [D::V; V] = std::array::from_fn(|v| D::load(quad.add(v * vector)));
            for (sums, x) in sums.iter_mut().zip(acts) {
                for (sum, w) in sums.iter_mut().zip(w) {
                    *sum = D::dot1::<KIND, 0>(*sum, w, x);
                }
            }
            let w: [D::V; V] = std::array::from_fn(|v| D::load(quad.add((V + v) * vector)));
            for (sums, x) in sums.iter_mut().zip(acts) {
                for (sum, w) in sums.iter_mut().zip(w) {
                    *sum = D::dot1::<KIND, 1>(*sum, w, x);
                }
            }
            let w: [D::V; V] = std::array::from_fn(|v| D::load(quad.add((2 * V + v) * vector)));
            for (sums, x) in sums.iter_mut().zip(acts) {
                for (sum, w) in sums.iter_mut().zip(w) {
                    *sum = D::dot1::<KIND, 2>(*sum, w, x);
                }
            }
            let w: [D::V; V] = std::array::from_fn(|v| D::load(quad.add((3 * V + v) * vector)));
            for (sums, x) in sums.iter_mut().zip(acts) {
                for (sum, w) in sums.iter_mut().zip(w) {
                    *sum = D::dot1::<KIND, 3>(*sum, w, x);
                }
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
    R
}

/// Multiplies the sums of `panel` tiles by the scales of their rows and writes them out.
///
/// # Safety
/// Needs the instructions of `D`; `sums` must be valid for reading 16 × the number of tiles floats for each
/// of the rows.
#[inline(always)]
unsafe fn finish<D: Dot>(
    w: &Palette<'_>,
    panel: Range<usize>,
    tiles: &Range<usize>,
    rows: Range<usize>,
    sums: *const f32,
    out: &mut [f32],
) {
    let width = tiles.len() * TILE;
    let lanes = TILE / D::PARTS;
    let count = panel.len();
    for (i, t) in panel.enumerate() {
        let scales = w.tile_scales(t);
        for (m, row) in rows.clone().enumerate() {
            let y = &mut out[row * width + (t - tiles.start) * TILE..][..TILE];
            for p in 0..D::PARTS {
                // SAFETY: y and scales have 16 elements, PARTS vectors; the caller promises 16 × count sums
                // for each row.
                unsafe {
                    let scale = D::load_f(scales.as_ptr().add(p * lanes));
                    let sum = D::load_f(sums.add((m * count + i) * TILE + p * lanes));
                    D::store_f(y.as_mut_ptr().add(p * lanes), D::mul(sum, scale));
                }
            }
        }
    }
}
