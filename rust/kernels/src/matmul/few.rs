//! One to sixteen rows of activations: codes are decoded in registers and used for all rows at once.

use std::ops::Range;

use crate::arch::Dot;
use crate::formats::{Palette, TILE};
use crate::quantized::{QuantRows, blocks};

/// How far ahead of the decoder memory is asked for, in bytes.
const AHEAD: usize = 2048;

/// One row, in four independent sums so that the latency of the dot product is hidden.
///
/// # Safety
/// Needs the instructions of `D`; the lengths must fit as `Kernels::matmul_palette` checks them, and x has a row.
#[inline(always)]
pub(crate) unsafe fn one<D: Dot, const BITS: usize>(
    w: &Palette<'_>,
    x: &QuantRows<'_>,
    tiles: Range<usize>,
    out: &mut [f32],
) {
    for (i, t) in tiles.enumerate() {
        // SAFETY: as the caller promises.
        unsafe { tile::<D, BITS, 1, 4>(w, x, t, 0, 1, &mut out[i * TILE..], 0) };
    }
}

/// Any number of rows, at most eight at a time; meant for 2 to 16. Sixteen at a time would decode once instead of twice,
/// but measured slower: each dot product then needs a load of its own, and pointers to rows outgrow the registers.
///
/// # Safety
/// As for [`one`].
#[inline(always)]
pub(crate) unsafe fn few<D: Dot, const BITS: usize>(
    w: &Palette<'_>,
    x: &QuantRows<'_>,
    tiles: Range<usize>,
    out: &mut [f32],
) {
    let width = tiles.len() * TILE;
    let step = x.rows.div_ceil(x.rows.div_ceil(8));
    for (i, t) in tiles.enumerate() {
        for first in (0..x.rows).step_by(step) {
            let rows = (x.rows - first).min(step);
            let out = &mut out[first * width + i * TILE..];
            // A kernel for more rows than there are repeats the last one and drops its result. Sums in flight: at
            // least eight where the registers allow it.
            // SAFETY: as the caller promises; each kernel serves at least `rows` rows.
            unsafe {
                match rows {
                    1 | 2 => tile::<D, BITS, 2, 4>(w, x, t, first, rows, out, width),
                    3 | 4 => tile::<D, BITS, 4, 2>(w, x, t, first, rows, out, width),
                    5 | 6 if const { D::PARTS == 2 } => {
                        tile::<D, BITS, 6, 1>(w, x, t, first, rows, out, width)
                    }
                    5 | 6 => tile::<D, BITS, 6, 2>(w, x, t, first, rows, out, width),
                    _ => tile::<D, BITS, 8, 1>(w, x, t, first, rows, out, width),
                }
            }
        }
    }
}

/// The 16 outputs of a tile for rows `first..first + rows` (1..=M), written to `out` at multiples of `width`.
#[inline(always)]
unsafe fn tile<D: Dot, const BITS: usize, const M: usize, const CHAINS: usize>(
    w: &Palette<'_>,
    x: &QuantRows<'_>,
    t: usize,
    first: usize,
    rows: usize,
    out: &mut [f32],
    width: usize,
) {
    let n_blocks = blocks(w.cols);
    let groups = w.cols.div_ceil(32);
    let group_bytes = BITS * 64;
    let lanes = TILE / D::PARTS;
    let row: [usize; M] = std::array::from_fn(|m| first + m.min(rows - 1));
    let scales = w.tile_scales(t);
    // SAFETY: the caller promises the instructions and the lengths: codes hold `groups` groups, rows of x hold
    // 32 × groups values (stride is a multiple of 64 at least as long), scales and sums one entry per block.
    unsafe {
        let codes = w.tile(t).as_ptr();
        let table = D::table::<BITS>(w.tile_codebook(t).as_ptr());
        let values: [*const i8; M] = row.map(|r| x.values.as_ptr().add(r * x.stride));
        let mut acc = [[D::splat(0.0); M]; 4];
        for b in 0..n_blocks {
            let here = (groups - 8 * b).min(8);
            for (p, acc) in acc.iter_mut().enumerate().take(D::PARTS) {
                let mut sums = [[D::sum(0); CHAINS]; M];
                for m in 0..M {
                    let total = *x.sums.get_unchecked(row[m] * n_blocks + b);
                    sums[m][0] = D::sum(total.wrapping_mul(-D::bias::<BITS>()));
                }
                let mut group = codes.add(b * 8 * group_bytes + p * 64 / D::PARTS);
                for g in 0..here {
                    if p == 0 {
                        for line in 0..BITS {
                            D::prefetch(group.wrapping_add(AHEAD + 64 * line));
                        }
                    }
                    let k = b * 256 + g * 32;
                    let quads = D::decode::<BITS, 0>(table, group);
                    for m in 0..M {
                        D::dot4::<BITS, CHAINS>(&mut sums[m], quads, D::acts(values[m].add(k)));
                    }
                    let quads = D::decode::<BITS, 1>(table, group);
                    for m in 0..M {
                        D::dot4::<BITS, CHAINS>(&mut sums[m], quads, D::acts(values[m].add(k + 16)));
                    }
                    group = group.add(group_bytes);
                }
                for m in 0..M {
                    let mut sum = sums[m][0];
                    for chain in &sums[m][1..] {
                        sum = D::add(sum, *chain);
                    }
                    let scale = D::splat(*x.scales.get_unchecked(row[m] * n_blocks + b));
                    acc[m] = D::fma(D::float(sum), scale, acc[m]);
                }
            }
        }
        for m in 0..rows {
            let y = &mut out[m * width..][..TILE];
            for (p, acc) in acc.iter().enumerate().take(D::PARTS) {
                let scale = D::load_f(scales.as_ptr().add(p * lanes));
                D::store_f(y.as_mut_ptr().add(p * lanes), D::mul(acc[m], scale));
            }
        }
    }
}
