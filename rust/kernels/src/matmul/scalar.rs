//! The portable version: the definition that the others are held to.

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
    for (i, t) in tiles.enumerate() {
        let (codes, codebook, scales) = (w.tile(t), w.tile_codebook(t), w.tile_scales(t));
        for m in 0..x.rows {
            let values = &x.values[m * x.stride..];
            let mut acc = [0f32; TILE];
            for b in 0..n_blocks {
                let mut sums = [0i32; TILE];
                let range = b * ACT_BLOCK..padded.min((b + 1) * ACT_BLOCK);
                for (k, &q) in range.clone().zip(&values[range]) {
                    for (r, sum) in sums.iter_mut().enumerate() {
                        let code = w.kind.code(codes, r, k);
                        let value = if w.kind == Kind::P8 { code as i8 } else { codebook[usize::from(code)] };
                        *sum += i32::from(value) * i32::from(q);
                    }
                }
                for (a, s) in acc.iter_mut().zip(sums) {
                    *a = (s as f32).mul_add(x.scales[m * n_blocks + b], *a);
                }
            }
            for (r, y) in out[m * width + i * TILE..][..TILE].iter_mut().enumerate() {
                *y = acc[r] * scales[r];
            }
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
