//! The sweep over the inputs: each code is chosen in the light of the errors of those before it.
//!
//! With H = (I + U) D (I + U)ᵀ the error is Σ_k D_k (t_k - ŵ_k)², where t_k = w_k + Σ_{j<k} (w_j - ŵ_j) U_jk: the best code for
//! input k, given all before, is the one nearest to t_k. A code of two inputs takes the least sum of both terms. What the codes
//! of a block of inputs change in the targets behind the block is added at once ("lazy batches" of GPTQ).

use super::hessian::Unit;
use super::{Hessian, Tile};
use crate::error::KernelError;
use crate::formats::TILE;
use crate::kernels::Kernels;
use crate::ops::Outer;

/// Inputs of a block; no code's inputs lie in two, since pairs begin at even places.
const BLOCK: usize = 128;
/// Columns of the factor that are widened to float64 at once.
const CHUNK: usize = 512;

/// Chooses all codes of the tile anew. `targets` is scratch of `[rows, cols]`.
pub(super) fn sweep(
    kernels: &Kernels,
    tile: &mut Tile<'_>,
    hessian: &Hessian<'_>,
    targets: &mut [f64],
) -> Result<(), KernelError> {
    let choose = Choice::new(tile);
    let (weights, codes, scale) = (tile.weights, &mut *tile.codes, tile.scale);
    let (cols, per_row) = (tile.cols, codes.len() / tile.rows);
    let order = hessian.order.columns();
    sweep_with(kernels, tile.rows, weights, hessian, targets, |row, unit, target| {
        let code = if unit.len == 1 {
            choose.nearest(target[0], scale[row])
        } else {
            let first = f64::from(weights[row * cols + order[unit.place]]);
            let link = f64::from(hessian.factor[unit.place * cols + unit.place + 1]);
            let [near, far] = [hessian.pivots[unit.place], hessian.pivots[unit.place + 1]];
            choose.least(|[a, b]| {
                let (a, b) = (scale[row] * a, scale[row] * b);
                let behind = target[1] + (first - a) * link - b;
                near * (target[0] - a) * (target[0] - a) + far * behind * behind
            })
        };
        codes[row * per_row + unit.code] = code as u8;
        choose.entries[code].map(|entry| scale[row] * entry)
    })
}

/// The sweep with any rounding: `round(row, inputs, targets)` gives the values that are stored for the inputs of a code.
pub(super) fn sweep_with(
    kernels: &Kernels,
    rows: usize,
    weights: &[f32],
    hessian: &Hessian<'_>,
    targets: &mut [f64],
    mut round: impl FnMut(usize, &Unit, &[f64]) -> [f64; 2],
) -> Result<(), KernelError> {
    let order = hessian.order.columns();
    let cols = order.len();
    for row in 0..rows {
        for (place, &col) in order.iter().enumerate() {
            targets[row * cols + place] = weights[row * cols + col].into();
        }
    }
    let mut units = hessian.order.units();
    let mut errors = vec![0.0; BLOCK * rows];
    let mut wide = Vec::new();
    for first in (0..cols).step_by(BLOCK) {
        let end = cols.min(first + BLOCK);
        let count = units.partition_point(|unit| unit.place < end);
        for unit in &units[..count] {
            for row in 0..rows {
                let values = round(row, unit, &targets[row * cols + unit.place..][..unit.len]);
                for (place, value) in (unit.place..unit.place + unit.len).zip(values) {
                    let error = f64::from(weights[row * cols + order[place]]) - value;
                    errors[(place - first) * rows + row] = error;
                    let behind = &mut targets[row * cols + place + 1..row * cols + end];
                    kernels.add_scaled(
                        behind,
                        error,
                        &hessian.factor[place * cols + place + 1..place * cols + end],
                    )?;
                }
            }
        }
        units = &units[count..];
        for left in (end..cols).step_by(CHUNK) {
            let width = CHUNK.min(cols - left);
            wide.clear();
            for place in first..end {
                let factor = &hessian.factor[place * cols + left..place * cols + left + width];
                wide.extend(factor.iter().map(|&u| f64::from(u)));
            }
            let terms = end - first;
            let sum =
                Outer { a: &errors, a_stride: rows, b: &wide, b_stride: width, terms, rows, cols: width };
            kernels.outer_f64(&sum, &mut targets[left..], cols)?;
        }
    }
    Ok(())
}

/// The values to choose from.
pub(super) struct Choice {
    /// Of each code, for its inputs; second ones are 0 where codes stand for one.
    pub entries: [[f64; 2]; TILE],
    count: usize,
}

impl Choice {
    pub fn new(tile: &Tile<'_>) -> Self {
        let count = tile.codebook.len() / if tile.pairs { 2 } else { 1 };
        let mut entries = [[0.0; 2]; TILE];
        for (code, entry) in entries.iter_mut().enumerate().take(count) {
            entry[0] = tile.codebook[code].into();
            if tile.pairs {
                entry[1] = tile.codebook[count + code].into();
            }
        }
        Self { entries, count }
    }

    /// The first code of the least cost.
    #[inline(always)]
    pub fn least(&self, cost: impl Fn([f64; 2]) -> f64) -> usize {
        let mut best = (0, f64::INFINITY);
        for (code, &entry) in self.entries[..self.count].iter().enumerate() {
            let cost = cost(entry);
            if cost < best.1 {
                best = (code, cost);
            }
        }
        best.0
    }

    /// The code whose first entry, times `scale`, is nearest to `value`; of a row without scale the first.
    #[inline(always)]
    pub fn nearest(&self, value: f64, scale: f64) -> usize {
        if scale == 0.0 {
            return 0;
        }
        let value = value / scale;
        self.least(|[entry, _]| (entry - value) * (entry - value))
    }
}
