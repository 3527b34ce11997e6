//! Many rows of activations: a panel of weights is decoded once and used for all of them.
//!
//! A panel is up to four tiles × one activation block of 256 inputs, 16 KiB of int8, so that it stays in the
//! first-level cache. For each panel a register block walks over the rows; float sums wait in scratch memory between blocks.

use std::ops::Range;

use crate::arch::Dot;
use crate::formats::{Kind, Palette, TILE};
use crate::quantized::QuantRows;
use crate::scratch::{CHUNK_ROWS, Scratch};

/// How the products of a panel are computed, once its rows and tiles are chosen.
pub(crate) trait Panels<D: Dot> {
    /// The float sums of `rows` × the tiles that `V` vectors hold from `tile` on, block by block, row by row in `sums`.
    ///
    /// # Safety
    /// Needs the instructions of `D` and of the type, and those ready to be used. `KIND` must be the number
    /// of w's kind and x have w's inputs; the tiles must be w's; `rows` must be x's, one or more and at most
    /// `CHUNK_ROWS`; `panel` and `sums` must be those of a [`Scratch`] that nothing else uses; `V` must be 1, 2 or 4
    /// times `D::PARTS`, at most 8.
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
        // Where a vector is a quarter of a tile, a panel is one tile.
        let count = match left {
            4.. if D::PARTS < 4 => 4,
            2.. if D::PARTS < 4 => 2,
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
                match count * D::PARTS {
                    1 if const { D::PARTS == 1 } => P::panels::<KIND, 1>(w, x, at, rows.clone(), panel, sums),
                    2 if const { D::PARTS < 4 } => P::panels::<KIND, 2>(w, x, at, rows.clone(), panel, sums),
                    8 if const { D::PARTS == 2 } => P::panels::<KIND, 8>(w, x, at, rows.clone(), panel, sums),
                    _ => P::panels::<KIND, 4>(w, x, at, rows.clone(), panel, sums),
                }
                finish::<D>(w, at..at + count, &tiles, rows.clone(), sums, out);
            }
            first = rows.end;
        }
        at += count;
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
