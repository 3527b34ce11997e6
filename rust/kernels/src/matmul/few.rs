//! One row of activations, a few, and wherever that measures faster than panels, many: codes are decoded in registers and used for up to eight rows at once.

// Counted loops over arrays of registers: they unroll reliably, and the index names the register.
#![allow(clippy::needless_range_loop)]

use std::ops::Range;

use crate::arch::Dot;
use crate::formats::{Kind, Palette, TILE};
use crate::quantized::{QuantRows, blocks, padded_cols};

/// How far ahead of the decoder memory is asked for, in bytes, into the second-level cache, which measured better than the first. Two
/// Zen 4 cores, llama-3.2-1b at 4 bits, ms for a step: eight rows 31.7 without, 27.5 asking for the first level, 24.1 for the second; four
/// rows 24.0, 23.1 and 18.2.
const AHEAD: usize = 8192;
/// Bytes of activations that are used for all tiles before the next ones.
const CHUNK_BYTES: usize = 64 << 10;

/// One row, in four independent sums of a part, or two of each of two parts side by side, so that the latency of the dot product is
/// hidden; in one where a sum waits for nothing but an addition.
///
/// # Safety
/// Needs the instructions of `D`; `KIND` must be the number of w's kind, x must have w's inputs and a row,
/// and the tiles must be w's.
#[inline(always)]
pub(crate) unsafe fn one<D: Dot, const KIND: usize>(
    w: &Palette<'_>,
    x: &QuantRows<'_>,
    tiles: Range<usize>,
    out: &mut [f32],
) {
    for (i, t) in tiles.enumerate() {
        // SAFETY: as the caller promises: row 0 exists.
        unsafe {
            if const { D::ONE_CHAIN } {
                pass::<D, KIND, 1, 1, 1>(w, x, t, 0..1, &mut out[i * TILE..], 0)
            } else if const { D::PARTS == 2 } {
                pass::<D, KIND, 1, 2, 1>(w, x, t, 0..1, &mut out[i * TILE..], 0)
            } else {
                pass::<D, KIND, 1, 4, 1>(w, x, t, 0..1, &mut out[i * TILE..], 0)
            }
        };
    }
}

/// Any number of rows, at most eight at a time. Sixteen at a time would decode once instead of twice, but measured slower: each
/// dot product then needs a load of its own, and pointers to rows outgrow the registers. Of prompts, as many rows at a time go
/// through all tiles as the second-level cache holds beside the codes; whether that beats panels depends on the machine
/// ([`super::choice`]).
///
/// # Safety
/// As for [`one`], but x may be without rows.
#[inline(always)]
pub(crate) unsafe fn few<D: Dot, const KIND: usize>(
    w: &Palette<'_>,
    x: &QuantRows<'_>,
    tiles: Range<usize>,
    out: &mut [f32],
) {
    let chunk = match CHUNK_BYTES.checked_div(padded_cols(x.cols)) {
        Some(rows) if x.rows > 16 => rows.clamp(16, 512) / 8 * 8,
        _ => x.rows.max(1),
    };
    for start in (0..x.rows).step_by(chunk) {
        // SAFETY: as the caller promises; the rows are x's, and not none.
        unsafe { some::<D, KIND>(w, x, start..x.rows.min(start + chunk), tiles.clone(), out) };
    }
}

/// Some rows × the outputs of `tiles`.
///
/// # Safety
/// As for [`one`]; the rows must be x's, and not none.
#[inline(always)]
unsafe fn some<D: Dot, const KIND: usize>(
    w: &Palette<'_>,
    x: &QuantRows<'_>,
    rows: Range<usize>,
    tiles: Range<usize>,
    out: &mut [f32],
) {
    let width = tiles.len() * TILE;
    let step = rows.len().div_ceil(rows.len().div_ceil(8));
    let mut t = tiles.start;
    while t < tiles.end {
        let pair = t + 1 < tiles.end && pairs::<D, KIND>(step);
        for first in rows.clone().step_by(step) {
            let rows = first..rows.end.min(first + step);
            let out = &mut out[first * width + (t - tiles.start) * TILE..];
            // A kernel for more rows than there are repeats the last one and drops its result. Sums in flight, where
            // they wait for products: at least eight where the registers allow it. Kernels for pairs exist where `pairs` asks for them.
            // SAFETY: as the caller promises; `rows` are one or more of x's, and where a kernel takes a pair
            // the next tile is among `tiles`. `width` and `out` are checked where they are used.
            unsafe {
                match step {
                    3 | 4 if const { pairs::<D, KIND>(4) } && pair => {
                        pass::<D, KIND, 4, 2, 2>(w, x, t, rows, out, width)
                    }
                    5 | 6 if const { pairs::<D, KIND>(6) } && pair => {
                        pass::<D, KIND, 6, 1, 2>(w, x, t, rows, out, width)
                    }
                    7.. if const { pairs::<D, KIND>(8) } && pair => {
                        pass::<D, KIND, 8, 1, 2>(w, x, t, rows, out, width)
                    }
                    ..3 if const { D::ONE_CHAIN } => pass::<D, KIND, 2, 1, 1>(w, x, t, rows, out, width),
                    3 | 4 if const { D::ONE_CHAIN } => pass::<D, KIND, 4, 1, 1>(w, x, t, rows, out, width),
                    ..3 if const { D::PARTS == 2 } => pass::<D, KIND, 2, 2, 1>(w, x, t, rows, out, width),
                    ..3 => pass::<D, KIND, 2, 4, 1>(w, x, t, rows, out, width),
                    3 | 4 => pass::<D, KIND, 4, 2, 1>(w, x, t, rows, out, width),
                    5 | 6 if const { D::PARTS == 2 } => pass::<D, KIND, 6, 1, 1>(w, x, t, rows, out, width),
                    5 | 6 => pass::<D, KIND, 6, 2, 1>(w, x, t, rows, out, width),
                    _ => pass::<D, KIND, 8, 1, 1>(w, x, t, rows, out, width),
                }
            }
        }
        t += if pair { 2 } else { 1 };
    }
}

/// How far ahead passes of that many rows ask for memory, in bytes; 0 where they do not. Where one row or two are done as fast as their
/// codes arrive, they read one stream in order, which some processors' own prefetchers follow better when not helped
/// ([`Dot::AHEAD_OF_STREAMS`]; two rows on Zen 4, ms for a step without and with: 17.3 and 17.9 at 4 bits, 17.7 and 16.1 at 3.5, 11.4 and
/// 10.2 at 2).
const fn ahead<D: Dot, const KIND: usize>(rows: usize) -> usize {
    match (rows, Kind::numbered(KIND)) {
        (1, _) | (2, Kind::P4 | Kind::P8) => D::AHEAD_OF_STREAMS,
        _ => AHEAD,
    }
}

/// Whether passes of that many rows take two tiles side by side, so that a load of activations serves both. Measured: it
/// pays where arithmetic sets the time and registers suffice, but not for more rows than the first-level cache holds.
const fn pairs<D: Dot, const KIND: usize>(rows: usize) -> bool {
    D::PARTS == 1
        && match Kind::numbered(KIND) {
            Kind::P2 | Kind::P3 => rows == 3 || rows == 4,
            Kind::P2v | Kind::P4 => rows >= 3,
            _ => false,
        }
}

/// The outputs of `T` tiles from `tile` on for 1 to `M` rows, written to `out` at multiples of `width`.
///
/// # Safety
/// Needs the instructions of `D`; `KIND` must be the number of w's kind, x must have w's inputs, the tiles
/// must be w's, and the rows x's and not none.
#[inline(always)]
unsafe fn pass<D: Dot, const KIND: usize, const M: usize, const CHAINS: usize, const T: usize>(
    w: &Palette<'_>,
    x: &QuantRows<'_>,
    tile: usize,
    rows: Range<usize>,
    out: &mut [f32],
    width: usize,
) {
    let n_blocks = blocks(w.cols);
    let groups = w.cols.div_ceil(32);
    let group_bytes = Kind::numbered(KIND).group_bytes();
    let tile_bytes = groups * group_bytes;
    let lanes = TILE / D::PARTS;
    // Parts that go through a block side by side share the loads of activations. That pays for one row or two where registers suffice: for
    // two parts, or where arithmetic sets the time. Zen 3, GB/s in turn and side by side. One row on two cores from memory (reading
    // alone: 34 to 38): 34 and 34 at p4, 31.5 and 33 at p8, 30.4 and 32 at p2v; from the third-level cache 53 and 55, 82 and 100, 31 and
    // 34. Two rows on one core from memory: 11.2 and 11.6 at p2, 8.5 and 9.1 at p2v, 11.9 and 12.1 at p3, 17.2 and 16.7 at p4, 17.5
    // and 20 at p8.
    let pays = D::PARTS == 2 || matches!(Kind::numbered(KIND), Kind::P2 | Kind::P3);
    let together =
        if M <= 2 && pays && D::PARTS * M * CHAINS * size_of::<D::Sum>() <= 256 { D::PARTS } else { 1 };
    let row: [usize; M] = std::array::from_fn(|m| (rows.start + m).min(rows.end - 1));
    // Counted loops rather than closures, which would not be inlined into code with the instructions.
    // SAFETY: the caller promises the instructions and the kind, by which a tile's codes are `groups` groups
    // and its codebook has the entries that `table` reads. Rows are clamped to the last, which exists; each
    // holds 32 × groups values, since its stride is the number of inputs rounded up to 64 or more, and x has
    // a scale and a sum for each row and block. `y` and the scales of a tile have 16 elements, which are
    // PARTS vectors.
    unsafe {
        let codes: [*const u8; T] = std::array::from_fn(|t| w.tile(tile + t).as_ptr());
        let mut table = [D::table::<KIND>(w.tile_codebook(tile).as_ptr()); T];
        for (t, table) in table.iter_mut().enumerate().skip(1) {
            *table = D::table::<KIND>(w.tile_codebook(tile + t).as_ptr());
        }
        let values: [*const i8; M] = row.map(|r| x.values.as_ptr().add(r * x.stride));
        let mut acc = [[[D::splat(0.0); T]; M]; 4];
        for b in 0..n_blocks {
            let here = (groups - 8 * b).min(8);
            for part in (0..D::PARTS).step_by(together) {
                let mut sums = [[[[D::sum(0); CHAINS]; T]; M]; 4];
                for m in 0..M {
                    let total = *x.sums.get_unchecked(row[m] * n_blocks + b);
                    for p in 0..together {
                        for sums in &mut sums[p][m] {
                            sums[0] = D::sum(total.wrapping_mul(-D::bias::<KIND>()));
                        }
                    }
                }
                for g in 0..here {
                    let k = b * 256 + g * 32;
                    let at = (8 * b + g) * group_bytes;
                    let far = const { ahead::<D, KIND>(M) / T };
                    if part == 0 && far > 0 {
                        // Behind tiles that are read side by side come the next ones.
                        let near = at + far < tile_bytes;
                        let ahead = at + far + if near { 0 } else { (T - 1) * tile_bytes };
                        for codes in codes {
                            for line in 0..group_bytes / 64 {
                                D::prefetch(codes.wrapping_add(ahead + 64 * line));
                            }
                        }
                    }
                    for p in 0..together {
                        let group = codes.map(|codes| codes.add(at + (part + p) * 64 / D::PARTS));
                        let mut quads = [D::decode::<KIND, 0>(table[0], group[0]); T];
                        for t in 1..T {
                            quads[t] = D::decode::<KIND, 0>(table[t], group[t]);
                        }
                        for m in 0..M {
                            let x = D::acts(values[m].add(k));
                            for t in 0..T {
                                D::dot4::<KIND, CHAINS>(&mut sums[p][m][t], quads[t], x);
                            }
                        }
                    }
                    for p in 0..together {
                        let group = codes.map(|codes| codes.add(at + (part + p) * 64 / D::PARTS));
                        let mut quads = [D::decode::<KIND, 1>(table[0], group[0]); T];
                        for t in 1..T {
                            quads[t] = D::decode::<KIND, 1>(table[t], group[t]);
                        }
                        for m in 0..M {
                            let x = D::acts(values[m].add(k + 16));
                            for t in 0..T {
                                D::dot4::<KIND, CHAINS>(&mut sums[p][m][t], quads[t], x);
                            }
                        }
                    }
                }
                for p in 0..together {
                    for m in 0..M {
                        let scale = D::splat(*x.scales.get_unchecked(row[m] * n_blocks + b));
                        for t in 0..T {
                            let mut sum = sums[p][m][t][0];
                            for chain in &sums[p][m][t][1..] {
                                sum = D::add(sum, *chain);
                            }
                            let acc = &mut acc[part + p][m][t];
                            *acc = D::fma(D::float(sum), scale, *acc);
                        }
                    }
                }
            }
        }
        for t in 0..T {
            let scales = w.tile_scales(tile + t);
            for m in 0..rows.len() {
                let y = &mut out[m * width + t * TILE..][..TILE];
                for (p, acc) in acc.iter().enumerate().take(D::PARTS) {
                    let scale = D::load_f(scales.as_ptr().add(p * lanes));
                    D::store_f(y.as_mut_ptr().add(p * lanes), D::mul(acc[m][t], scale));
                }
            }
        }
    }
}
