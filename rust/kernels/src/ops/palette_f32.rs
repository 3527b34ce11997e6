//! Palettized weights × float32 activations: the precise path, for comparison with int8 activations.
//!
//! An output is one sum over the inputs in order, `acc = fma(value, x, acc)`, times the row's scale; lanes are the 16 rows of a tile.

use std::ops::Range;

use crate::formats::{Kind, Palette, TILE};
use crate::simd::{LANES, Simd};

/// Inputs that are decoded at once: a multiple of 32, the group of every kind.
const CHUNK: usize = 128;

/// The codebook values of inputs `start..start + len` of a tile, 16 rows per input.
#[inline(always)]
fn decode(w: &Palette<'_>, tile: usize, start: usize, to: &mut [[f32; LANES]]) {
    let mut table = [0.0; 16];
    for (value, &entry) in table.iter_mut().zip(w.tile_codebook(tile)) {
        *value = f32::from(entry);
    }
    let group = w.kind.group_bytes();
    let codes = &w.tile(tile)[start / 32 * group..];
    for (bytes, to) in codes.chunks_exact(group).zip(to.chunks_mut(32)) {
        for (k, values) in to.iter_mut().enumerate() {
            // Bytes 4r + j of one line hold the codes of input k for the rows r.
            let (line, shift) = match w.kind {
                Kind::P8 => (k / 4, 0),
                Kind::P4 => (k / 8, k % 8 / 4 * 4),
                Kind::P2 | Kind::P3 => (k / 16, k % 16 / 4 * 2),
            };
            let line = bytes[line * 64..].as_chunks::<4>().0;
            let high = if w.kind == Kind::P3 { bytes[128..].as_chunks::<4>().0 } else { line };
            for (r, value) in values.iter_mut().enumerate() {
                let byte = line[r][k % 4];
                *value = match w.kind {
                    Kind::P8 => f32::from(byte as i8),
                    Kind::P4 => table[usize::from(byte >> shift & 15)],
                    Kind::P2 => table[usize::from(byte >> shift & 3)],
                    Kind::P3 => table[usize::from(byte >> shift & 3 | (high[r][k % 4] >> (k / 4) & 1) << 2)],
                };
            }
        }
    }
}

/// Adds a chunk's inputs to the sums of `R` rows of activations.
#[inline(always)]
fn accumulate<S: Simd, const R: usize>(
    s: S,
    values: &[[f32; LANES]],
    x: &[f32],
    stride: usize,
    out: &mut [f32],
    width: usize,
) {
    let mut acc = [s.zero(); R];
    let mut rows: [&[f32]; R] = [&[]; R];
    for (r, (acc, row)) in acc.iter_mut().zip(&mut rows).enumerate() {
        *acc = s.load_part(&out[r * width..r * width + TILE]);
        *row = &x[r * stride..r * stride + values.len()];
    }
    for (k, value) in values.iter().enumerate() {
        let v = s.load(value);
        for (acc, row) in acc.iter_mut().zip(&rows) {
            *acc = s.fma(v, s.splat(row[k]), *acc);
        }
    }
    for (r, acc) in acc.into_iter().enumerate() {
        s.store_part(&mut out[r * width..r * width + TILE], acc);
    }
}

#[inline(always)]
fn product<S: Simd>(
    s: S,
    w: &Palette<'_>,
    x: &[f32],
    m: usize,
    stride: usize,
    tiles: Range<usize>,
    out: &mut [f32],
) {
    let width = tiles.len() * TILE;
    out.fill(0.0);
    let mut values = [[0.0; LANES]; CHUNK];
    for (i, tile) in tiles.enumerate() {
        for start in (0..w.cols).step_by(CHUNK) {
            let values = &mut values[..CHUNK.min(w.cols - start)];
            decode(w, tile, start, values);
            let mut row = 0;
            while row < m {
                let (x, out) = (&x[row * stride + start..], &mut out[row * width + i * TILE..]);
                if m - row >= 4 {
                    accumulate::<S, 4>(s, values, x, stride, out, width);
                    row += 4;
                } else {
                    accumulate::<S, 1>(s, values, x, stride, out, width);
                    row += 1;
                }
            }
        }
        let scales = s.load(&w.tile_scales(tile));
        for row in 0..m {
            let y = &mut out[row * width + i * TILE..][..TILE];
            s.store_part(y, s.mul(s.load_part(y), scales));
            // Outputs beyond the last row of the weight.
            y[TILE.min(w.rows - tile * TILE)..].fill(0.0);
        }
    }
}

instantiate! {
    MatmulPaletteF32, "p2", "many" => p2 = product,
        (w: &Palette<'_>, x: &[f32], m: usize, stride: usize, tiles: Range<usize>, out: &mut [f32]);
    MatmulPaletteF32, "p3", "many" => p3 = product,
        (w: &Palette<'_>, x: &[f32], m: usize, stride: usize, tiles: Range<usize>, out: &mut [f32]);
    MatmulPaletteF32, "p4", "many" => p4 = product,
        (w: &Palette<'_>, x: &[f32], m: usize, stride: usize, tiles: Range<usize>, out: &mut [f32]);
    MatmulPaletteF32, "p8", "many" => p8 = product,
        (w: &Palette<'_>, x: &[f32], m: usize, stride: usize, tiles: Range<usize>, out: &mut [f32]);
}
