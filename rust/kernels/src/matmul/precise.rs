//! Palettized weights × float32 activations: the precise path.
//!
//! One output is one chain of fused multiply-adds over its inputs in order, then its scale. A panel of weights (up to
//! 64 rows × 64 inputs as float32, 16 KiB) is decoded once and used for all rows of activations.

use std::mem::MaybeUninit;
use std::ops::Range;

use super::scalar;
use crate::arch::Dot;
use crate::cpu::Level;
use crate::formats::{Kind, Palette, TILE, each_kind};
use crate::quantized::ACT_BLOCK;
use crate::registry::{KernelFn, Row};

/// Inputs of a panel.
const DEPTH: usize = 64;

/// A panel of decoded weights. Written before it is read, so it need not be cleared.
#[repr(C, align(64))]
struct Panel(MaybeUninit<[f32; 64 * DEPTH]>);

/// Float32 activations: `rows` × the weight's inputs, `stride` elements apart.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    pub(crate) data: &'a [f32],
    pub(crate) rows: usize,
    pub(crate) stride: usize,
}

/// All rows of x × the outputs of `tiles`.
///
/// # Safety
/// Needs the instructions of `D`; `KIND` must be the number of w's kind, the tiles must be w's, x must hold
/// its rows of w's inputs, and `out` 16 outputs of each tile for each of them.
#[inline(always)]
pub(crate) unsafe fn any<D: Dot, const KIND: usize>(
    w: &Palette<'_>,
    x: Rows<'_>,
    tiles: Range<usize>,
    out: &mut [f32],
) {
    let width = tiles.len() * TILE;
    let mut panel = Panel(MaybeUninit::uninit());
    let panel = panel.0.as_mut_ptr().cast();
    out.fill(0.0);
    let mut at = tiles.start;
    while at < tiles.end {
        // Panels are four vectors wide, or one tile where fewer are left.
        let count = if tiles.end - at >= 4 / D::PARTS { 4 / D::PARTS } else { 1 };
        // SAFETY: as the caller promises: each row of `out` has `count` tiles from here on, which lie in it
        // if x has rows, and are the vectors of each call. The panel is ours, and four vectors wide.
        unsafe {
            let to = out.as_mut_ptr().add((at - tiles.start) * TILE);
            if const { D::PARTS == 4 } || count > 1 {
                panels::<D, KIND, 4>(w, x, at, panel, to, width);
            } else if const { D::PARTS == 2 } {
                panels::<D, KIND, 2>(w, x, at, panel, to, width);
            } else {
                panels::<D, KIND, 1>(w, x, at, panel, to, width);
            }
        }
        at += count;
    }
    finish(w, tiles, x.rows, out);
}

/// Multiplies the sums by the scales of their rows; clears the outputs beyond the weight's last row.
#[inline(always)]
fn finish(w: &Palette<'_>, tiles: Range<usize>, rows: usize, out: &mut [f32]) {
    let width = tiles.len() * TILE;
    for (i, t) in tiles.enumerate() {
        let scales = w.tile_scales(t);
        let have = (w.rows - t * TILE).min(TILE);
        for m in 0..rows {
            let y = &mut out[m * width + i * TILE..][..TILE];
            for (y, scale) in y.iter_mut().zip(scales) {
                *y *= scale;
            }
            y[have..].fill(0.0);
        }
    }
}

/// Adds the sums of all rows × the tiles that `V` vectors hold, panel by panel; rows of `to` are `width` apart.
///
/// # Safety
/// Needs the instructions of `D`; `KIND` must be the number of w's kind and `V` a multiple of `D::PARTS`; the
/// tiles must be w's, and x must hold its rows of w's inputs. `panel` must have room for 64 inputs of `V`
/// vectors, and `to` be valid for reading and writing `V` vectors for each row.
#[inline(always)]
unsafe fn panels<D: Dot, const KIND: usize, const V: usize>(
    w: &Palette<'_>,
    x: Rows<'_>,
    tile: usize,
    panel: *mut f32,
    to: *mut f32,
    width: usize,
) {
    // SAFETY: as the caller promises. Groups are counted from inputs that w has, and the last may be one that
    // is padded, for which the panel has room as 64 is a multiple of 32. All tiles are decoded before the
    // block reads them, and it reads rows that are left.
    unsafe {
        for k in (0..w.cols).step_by(DEPTH) {
            let depth = (w.cols - k).min(DEPTH);
            for i in 0..V / D::PARTS {
                decode::<D, KIND, V>(w, tile + i, k / 32, depth.div_ceil(32), panel.add(i * TILE));
            }
            let mut first = 0;
            while first < x.rows {
                first += match x.rows - first {
                    1 => block::<D, V, 1>(x, first, k, depth, panel, to, width),
                    _ if const { D::PARTS == 2 } => block::<D, V, 2>(x, first, k, depth, panel, to, width),
                    2 => block::<D, V, 2>(x, first, k, depth, panel, to, width),
                    _ => block::<D, V, 4>(x, first, k, depth, panel, to, width),
                };
            }
        }
    }
}

/// Decodes `groups` of 32 inputs of a tile into its columns of the panel: input by input, `V` vectors each.
///
/// # Safety
/// Needs the instructions of `D`; `KIND` must be the number of w's kind; the tile must have `groups` groups
/// from group `first` on, and the panel room for `V` vectors for each of their inputs, less those before this
/// tile's.
#[inline(always)]
unsafe fn decode<D: Dot, const KIND: usize, const V: usize>(
    w: &Palette<'_>,
    tile: usize,
    first: usize,
    groups: usize,
    panel: *mut f32,
) {
    let lanes = TILE / D::PARTS;
    let group_bytes = Kind::numbered(KIND).group_bytes();
    // SAFETY: as the caller promises: the tile has the groups, of the size that KIND says, and the codebook
    // of a tile the kind's entries; of the V vectors for each input the first PARTS are written.
    unsafe {
        let codes = w.tile(tile).as_ptr().add(first * group_bytes);
        let table = D::table::<KIND>(w.tile_codebook(tile).as_ptr());
        for g in 0..groups {
            for p in 0..D::PARTS {
                let group = codes.add(g * group_bytes + p * 64 / D::PARTS);
                let to = panel.add((g * 32 * V + p) * lanes);
                for (q, v) in D::decode::<KIND, 0>(table, group).into_iter().enumerate() {
                    for (j, f) in D::floats::<KIND>(v).into_iter().enumerate() {
                        D::store_f(to.add((4 * q + j) * V * lanes), f);
                    }
                }
                for (q, v) in D::decode::<KIND, 1>(table, group).into_iter().enumerate() {
                    for (j, f) in D::floats::<KIND>(v).into_iter().enumerate() {
                        D::store_f(to.add((16 + 4 * q + j) * V * lanes), f);
                    }
                }
            }
        }
    }
}

/// One register block: up to `R` rows × `V` vectors over `depth` inputs from `k` on. Returns R.
///
/// # Safety
/// Needs the instructions of `D`; `first` must be a row of x, whose rows hold `depth` inputs from `k` on; the
/// panel must hold as many of `V` vectors, and `to` be valid for reading and writing `V` vectors for each row
/// of x.
#[inline(always)]
unsafe fn block<D: Dot, const V: usize, const R: usize>(
    x: Rows<'_>,
    first: usize,
    k: usize,
    depth: usize,
    panel: *const f32,
    to: *mut f32,
    width: usize,
) -> usize {
    let lanes = TILE / D::PARTS;
    // A block of more rows than are left repeats the last one and drops its sums.
    let row: [usize; R] = std::array::from_fn(|r| (first + r).min(x.rows - 1));
    // SAFETY: as the caller promises: rows are clamped to x's last, both those read of x and those of `to`;
    // of the sums only those of rows that are left are written.
    unsafe {
        let values: [*const f32; R] = row.map(|r| x.data.as_ptr().add(r * x.stride + k));
        let mut sums: [[D::F; V]; R] =
            row.map(|r| std::array::from_fn(|v| D::load_f(to.add(r * width + v * lanes))));
        for i in 0..depth {
            let w: [D::F; V] = std::array::from_fn(|v| D::load_f(panel.add((i * V + v) * lanes)));
            for (sums, x) in sums.iter_mut().zip(values) {
                let x = D::splat(*x.add(i));
                for (sum, w) in sums.iter_mut().zip(w) {
                    *sum = D::fma(w, x, *sum);
                }
            }
        }
        for (r, sums) in sums.into_iter().enumerate().take(x.rows - first) {
            for (v, sum) in sums.into_iter().enumerate() {
                D::store_f(to.add((first + r) * width + v * lanes), sum);
            }
        }
    }
    R
}

/// The portable version.
///
/// # Safety
/// Needs nothing: every access is checked. `unsafe` only to have the type that the registry holds.
unsafe fn portable(
    w: &Palette<'_>,
    x: &[f32],
    rows: usize,
    stride: usize,
    tiles: Range<usize>,
    out: &mut [f32],
) {
    let width = tiles.len() * TILE;
    out.fill(0.0);
    let mut decoded = [[0i8; ACT_BLOCK]; TILE];
    for (i, t) in tiles.clone().enumerate() {
        for k in (0..w.cols).step_by(ACT_BLOCK) {
            let end = w.cols.min(k + ACT_BLOCK);
            scalar::decode(w, t, k..end.div_ceil(32) * 32, &mut decoded);
            for m in 0..rows {
                let x = &x[m * stride..][k..end];
                for (row, acc) in decoded.iter().zip(&mut out[m * width + i * TILE..][..TILE]) {
                    for (&value, &x) in row.iter().zip(x) {
                        *acc = f32::from(value).mul_add(x, *acc);
                    }
                }
            }
        }
    }
    finish(w, tiles, rows, out);
}

const fn row(kind: Kind) -> Row {
    let func = KernelFn::MatmulPaletteF32(portable);
    Row { kind: kind.name(), variant: "many", level: Level::Scalar, func }
}

macro_rules! rows {
    ($($kind:ident)*) => { &[$(row(Kind::$kind)),*] };
}

pub(crate) const ROWS: &[Row] = each_kind!(rows);
