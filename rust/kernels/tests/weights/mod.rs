//! Random palettized weights and activations, and the definition of their product.

// Each test file uses a part of it.
#![allow(dead_code)]

use pocketlm_kernels::formats::pack;
use pocketlm_kernels::{ACT_BLOCK, GROUP, Kind, Palette, QuantBuffer, TILE, padded_cols};

/// A small generator (splitmix64): tests need variety, not quality.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in low..=high.
    pub fn range(&mut self, low: i64, high: i64) -> i64 {
        low + (self.next() % (high - low + 1) as u64) as i64
    }

    /// Uniform in -1..1.
    pub fn float(&mut self) -> f32 {
        (self.next() >> 40) as f32 / 8_388_608.0 - 1.0
    }
}

/// How values are drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Draw {
    /// Anything on the grid.
    Any,
    /// Weights as those, activations nearly normal.
    Bell,
    /// The smallest and the largest only; of activations, groups as large as they may be, with signs that agree as often as can be.
    Extreme,
}

/// A weight that owns its memory.
pub struct Weight {
    pub kind: Kind,
    pub rows: usize,
    pub cols: usize,
    pub codes: Vec<u8>,
    pub codebook: Vec<i8>,
    pub scale: Vec<u16>,
}

impl Weight {
    pub fn new(kind: Kind, rows: usize, cols: usize, draw: Draw, rng: &mut Rng) -> Self {
        let (low, high) = kind.grid();
        let (tiles, k32) = (rows.div_ceil(TILE), cols.div_ceil(32) * 32);
        let (often, seldom) = if rng.range(0, 1) == 0 { (low, high) } else { (high, low) };
        let value = |rng: &mut Rng| match draw {
            Draw::Any | Draw::Bell => rng.range(low.into(), high.into()) as i8,
            Draw::Extreme => [often, seldom][rng.range(0, 9) as usize / 9],
        };
        let codebook = (0..tiles * kind.codebook_len()).map(|_| value(rng)).collect();
        // Codes of padding rows and inputs are random too: they must not matter.
        let codes: Vec<u8> = (0..tiles * TILE * kind.codes_per_row(k32))
            .map(|i| match (kind, draw) {
                // Signs as some groups of activations have them.
                (Kind::P8, Draw::Extreme) if rng.range(0, 9) > 0 => {
                    [127i8, 127, -127, -127, -127, -127, 127, 127][i % 8] as u8
                }
                (Kind::P8, _) => value(rng) as u8,
                _ => rng.range(0, kind.codes() as i64 - 1) as u8,
            })
            .collect();
        let codes = pack(kind, tiles * TILE, k32, &codes).unwrap();
        let scale =
            (0..rows).map(|_| half::f16::from_f32(rng.range(-999, 999) as f32 / 777.0).to_bits()).collect();
        Self { kind, rows, cols, codes, codebook, scale }
    }

    pub fn palette(&self) -> Palette<'_> {
        Palette::new(self.kind, self.rows, self.cols, &self.codes, &self.codebook, &self.scale).unwrap()
    }
}

/// Four activations that are a group, no larger than [`GROUP`]: anything, or as large as that by one sign or, in pairs, by both.
fn members(draw: Draw, above: bool, rng: &mut Rng) -> [i8; 4] {
    if draw == Draw::Bell || (draw == Draw::Any && rng.range(0, 3) > 0) {
        loop {
            let any = [0; 4].map(|_| match draw {
                Draw::Bell => (0..6).map(|_| rng.range(-30, 30)).sum::<i64>().clamp(-127, 127),
                _ => rng.range(-127, 127),
            });
            if [1, -1].iter().all(|sign| any.iter().map(|v| (sign * v).max(0)).sum::<i64>() <= GROUP.into()) {
                return any.map(|v| v as i8);
            }
        }
    }
    let sign = if above { 1 } else { -1 };
    match rng.range(0, 3) {
        // Where signs are those of the weights, all four may be the largest.
        0 => [127, 127, -127, -127].map(|v: i8| v * sign),
        1 => [127, -127, 127, -127].map(|v: i8| v * sign),
        _ => {
            let mut left = i64::from(GROUP);
            [3, 2, 1, 0].map(|later| {
                // At least what the later ones cannot take.
                let value = rng.range((left - 127 * later).max(0), left.min(127));
                left -= value;
                value as i8 * sign
            })
        }
    }
}

/// Activations with random scales, some of them zero.
pub fn activations(rows: usize, cols: usize, draw: Draw, rng: &mut Rng) -> QuantBuffer {
    let mut buffer = QuantBuffer::new(rows, cols).unwrap();
    let mut view = buffer.as_rows_mut();
    let first = rng.range(0, 1) == 0;
    for m in 0..rows {
        let row = view.row_mut(m).unwrap();
        for eight in row.values[..cols].chunks_mut(8) {
            for group in [[0, 1, 4, 5], [2, 3, 6, 7]] {
                for (at, value) in group.into_iter().zip(members(draw, first == (m % 2 == 0), rng)) {
                    if let Some(q) = eight.get_mut(at) {
                        *q = value;
                    }
                }
            }
        }
        // What may lie between rows is nothing to a kernel.
        row.values[padded_cols(cols)..].fill(99);
        for (b, (scale, sum)) in row.scales.iter_mut().zip(row.sums).enumerate() {
            let block = &row.values[b * ACT_BLOCK..cols.min((b + 1) * ACT_BLOCK)];
            *sum = block.iter().map(|&q| i32::from(q)).sum();
            *scale = if rng.range(0, 15) == 0 { 0.0 } else { rng.range(1, 4000) as f32 / 3e4 };
        }
    }
    buffer
}

/// The definition, from the weights' integers: exact block sums, then one fused multiply-add per block, then the scale.
/// Also the same in float64, and the sum of magnitudes that bounds its distance.
pub fn define(w: &Weight, x: &QuantBuffer) -> Vec<(f32, f64, f64)> {
    let (palette, x) = (w.palette(), x.as_rows());
    let values: Vec<i64> = (0..w.rows * w.cols)
        .map(|i| i64::from(palette.value(i / w.cols.max(1), i % w.cols.max(1))))
        .collect();
    let mut out = Vec::new();
    for m in 0..x.rows() {
        let (q, scales, _) = x.row(m).unwrap();
        for n in 0..w.rows {
            let row = &values[n * w.cols..(n + 1) * w.cols];
            let (mut exact, mut double, mut magnitude) = (0f32, 0f64, 0f64);
            for (b, &scale) in scales.iter().enumerate() {
                let range = b * ACT_BLOCK..w.cols.min((b + 1) * ACT_BLOCK);
                let sum: i64 = row[range.clone()].iter().zip(&q[range]).map(|(a, &b)| a * i64::from(b)).sum();
                exact = (sum as f32).mul_add(scale, exact);
                double += sum as f64 * f64::from(scale);
                magnitude += (sum as f64 * f64::from(scale)).abs();
            }
            let scale = half::f16::from_bits(w.scale[n]).to_f32();
            out.push((exact * scale, double * f64::from(scale), magnitude * f64::from(scale.abs())));
        }
    }
    out
}
