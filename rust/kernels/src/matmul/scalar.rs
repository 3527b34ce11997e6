//! The portable version: weights of a tile are decoded block by block and multiplied row by row.

use std::ops::Range;

use crate::cpu::Level;
use crate::formats::{Kind, Palette, TILE, each_kind};
use crate::quantized::{ACT_BLOCK, QuantRows, blocks};
use crate::registry::{KernelFn, Row};
use crate::scratch::Scratch;

/// The kernel for any number of rows.
///
/// # Safety
/// Needs nothing: every access is checked. `unsafe` only to have the type that the registry holds.
pub(crate) unsafe fn matmul(
    w: &Palette<'_>,
    x: &QuantRows<'_>,
    tiles: Range<usize>,
    _: &mut Scratch,
    out: &mut [f32],
) {
    let width = tiles.len() * TILE;
    let padded = w.cols.div_ceil(32) * 32;
    let n_blocks = blocks(w.cols);
    out.fill(0.0);
    let mut decoded = [[0i8; ACT_BLOCK]; TILE];
    for (i, t) in tiles.enumerate() {
        for b in 0..n_blocks {
            let range = b * ACT_BLOCK..padded.min((b + 1) * ACT_BLOCK);
            decode(w, t, range.clone(), &mut decoded);
            for m in 0..x.rows {
                let q = &x.values[m * x.stride..][range.clone()];
                let scale = x.scales[m * n_blocks + b];
                for (row, acc) in decoded.iter().zip(&mut out[m * width + i * TILE..][..TILE]) {
                    let sum: i32 = row.iter().zip(q).map(|(&a, &b)| i32::from(a) * i32::from(b)).sum();
                    *acc = (sum as f32).mul_add(scale, *acc);
                }
            }
        }
        let scales = w.tile_scales(t);
        for m in 0..x.rows {
            for (y, scale) in out[m * width + i * TILE..][..TILE].iter_mut().zip(scales) {
                *y *= scale;
            }
        }
    }
}

/// The values of inputs `range` (ends at multiples of 32) of a tile, row by row.
pub(super) fn decode(w: &Palette<'_>, tile: usize, range: Range<usize>, to: &mut [[i8; ACT_BLOCK]; TILE]) {
    let bytes = w.kind.group_bytes();
    let codes = &w.tile(tile)[range.start / 32 * bytes..range.end / 32 * bytes];
    let mut table = [0i8; 32];
    let codebook = w.tile_codebook(tile);
    table[..codebook.len()].copy_from_slice(codebook);
    for (g, group) in codes.chunks_exact(bytes).enumerate() {
        for (r, row) in to.iter_mut().enumerate() {
            let row: &mut [i8; 32] = row[g * 32..].first_chunk_mut().expect("a block holds 8 groups");
            let quad = |line: usize| -> [u8; 4] { std::array::from_fn(|j| group[64 * line + 4 * r + j]) };
            // Value p of a line's byte j is input 4p + j.
            match w.kind {
                Kind::P2v => {
                    let (first, second) = table.split_at(16);
                    for (line, to) in row.chunks_exact_mut(16).enumerate() {
                        let codes = quad(line);
                        for (p, to) in to.chunks_exact_mut(8).enumerate() {
                            let codes = codes.map(|c| usize::from(c >> (4 * p) & 15));
                            to[..4].copy_from_slice(&codes.map(|c| first[c]));
                            to[4..].copy_from_slice(&codes.map(|c| second[c]));
                        }
                    }
                }
                Kind::P8 => {
                    for (line, to) in row.chunks_exact_mut(4).enumerate() {
                        to.copy_from_slice(&quad(line).map(|v| v as i8));
                    }
                }
                Kind::P4 => {
                    for (line, to) in row.chunks_exact_mut(8).enumerate() {
                        let codes = quad(line);
                        for p in 0..2 {
                            to[4 * p..][..4]
                                .copy_from_slice(&codes.map(|c| table[usize::from(c >> (4 * p) & 15)]));
                        }
                    }
                }
                Kind::P2 | Kind::P3 => {
                    let high = if w.kind == Kind::P3 { quad(2) } else { [0; 4] };
                    for (line, to) in row.chunks_exact_mut(16).enumerate() {
                        let low = quad(line);
                        for p in 0..4 {
                            for j in 0..4 {
                                let code = low[j] >> (2 * p) & 3 | (high[j] >> (4 * line + p) & 1) << 2;
                                to[4 * p + j] = table[usize::from(code & 15)];
                            }
                        }
                    }
                }
            }
        }
    }
}

const fn row(kind: Kind, variant: &'static str) -> Row {
    Row { kind: kind.name(), variant, level: Level::Scalar, func: KernelFn::MatmulPalette(matmul) }
}

macro_rules! rows {
    ($($kind:ident)*) => {
        &[$(row(Kind::$kind, "1"), row(Kind::$kind, "2-16"), row(Kind::$kind, "many")),*]
    };
}

pub(crate) const ROWS: &[Row] = each_kind!(rows);
