//! Cyclic coordinate descent: code after code is changed where that lowers the error, all others staying as they are.

use super::hessian::Unit;
use super::sums::Sums;
use super::sweep::Choice;
use super::{Hessian, Tile};
use crate::error::KernelError;
use crate::kernels::Kernels;

/// Passes over all codes at most, and the share of changed codes below which they end.
const PASSES: usize = 4;
const LEAST_CHANGES: f64 = 1e-3;
/// A change must gain more than this share of its own square term, so that rounding in the sums cannot make it a loss.
const MARGIN: f64 = 1e-9;

/// Changes codes and keeps `sums` up to date. Returns whether any code was changed.
pub(super) fn descend(
    kernels: &Kernels,
    tile: &mut Tile<'_>,
    hessian: &Hessian<'_>,
    sums: &mut Sums,
) -> Result<bool, KernelError> {
    let mut total = 0;
    for _ in 0..PASSES {
        let changes = pass(kernels, tile, hessian, sums)?;
        total += changes;
        if changes as f64 <= LEAST_CHANGES * tile.codes.len() as f64 {
            break;
        }
    }
    Ok(total > 0)
}

/// One pass; returns the number of changes.
fn pass(
    kernels: &Kernels,
    tile: &mut Tile<'_>,
    hessian: &Hessian<'_>,
    sums: &mut Sums,
) -> Result<usize, KernelError> {
    let choice = Choice::new(tile);
    let order = hessian.order.columns();
    let per_row = tile.codes.len() / tile.rows;
    let second = tile.codebook.len() / 2;
    let mut changes = 0;
    for &Unit { place, len, code } in hessian.order.units() {
        let columns = &order[place..place + len];
        let h = hessian.row(columns[0]);
        let own = f64::from(h[columns[0]]);
        for row in 0..tile.rows {
            let scale = tile.scale[row];
            let old = usize::from(tile.codes[row * per_row + code]);
            let residual = sums.residual[row * tile.cols + columns[0]];
            // The error as a function of this value is own · step² + 2 · residual · step.
            let one = |step: f64| (own * step * step, 2.0 * residual * step);
            let (new, steps, (square, slope)) = if let [_, other] = *columns {
                let (next, both) = (f64::from(hessian.row(other)[other]), f64::from(h[other]));
                let beyond = sums.residual[row * tile.cols + other];
                let two = |[a, b]: [f64; 2]| {
                    let (square, slope) = one(a);
                    (square + 2.0 * both * a * b + next * b * b, slope + 2.0 * beyond * b)
                };
                let steps = |entry: [f64; 2]| [0, 1].map(|i| scale * (entry[i] - choice.entries[old][i]));
                let new = choice.least(|entry| {
                    let (square, slope) = two(steps(entry));
                    square + slope
                });
                let steps = steps(choice.entries[new]);
                (new, steps, two(steps))
            } else {
                let new = choice.nearest(scale * choice.entries[old][0] - residual / own, scale);
                let step = scale * (choice.entries[new][0] - choice.entries[old][0]);
                (new, [step, 0.0], one(step))
            };
            if square * (1.0 + MARGIN) + slope < 0.0 {
                tile.codes[row * per_row + code] = new as u8;
                for (lane, &col) in columns.iter().enumerate() {
                    let components = (old + lane * second, new + lane * second);
                    sums.change(kernels, row, hessian.row(col), components, steps[lane])?;
                }
                changes += 1;
            }
        }
    }
    Ok(changes)
}
