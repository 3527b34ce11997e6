//! The portable version: weights of a tile are decoded block by block and multiplied row by row.

use std::ops::Range;

use crate::cpu::Level;
use crate::formats::{Kind, Palette, TILE};
use crate::quantized::{ACT_BLOCK, QuantRows, blocks};
use crate::registry::{KernelFn, Row};
use crate::scratch::Scratch;

unsafe fn matmul(w: &Palette<'_>, x: &QuantRows<'_>, tiles: Range<usize>, _: &mut Scratch, out: &mut [f32]) {
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

/// The values of inputs `range` of a tile, row by row.
fn decode(w: &Palette<'_>, tile: usize, range: Range<usize>, to: &mut [[i8; ACT_BLOCK]; TILE]) {
    let codes = w.tile(tile);
    // A table of 256 entries needs no check of its index; for `P8` a code is its own value.
    let mut table: [i8; 256] = std::array::from_fn(|i| i as i8);
    let codebook = w.tile_codebook(tile);
    table[..codebook.len()].copy_from_slice(codebook);
    for (r, row) in to.iter_mut().enumerate() {
        for (value, k) in row.iter_mut().zip(range.clone()) {
            *value = table[usize::from(w.kind.code(codes, r, k))];
        }
    }
}

const fn row(kind: Kind, variant: &'static str) -> Row {
    Row { kind: kind.name(), variant, level: Level::Scalar, func: KernelFn::MatmulPalette(matmul) }
}

pub(crate) const ROWS: &[Row] = &[
    row(Kind::P2, "1"),
    row(Kind::P2, "2-16"),
    row(Kind::P2, "many"),
    row(Kind::P3, "1"),
    row(Kind::P3, "2-16"),
    row(Kind::P3, "many"),
    row(Kind::P4, "1"),
    row(Kind::P4, "2-16"),
    row(Kind::P4, "many"),
    row(Kind::P8, "1"),
    row(Kind::P8, "2-16"),
    row(Kind::P8, "many"),
];
