//! 8-bit rows under H: whole numbers in place of codes, and a scale for each row.

use half::f16;

use super::sums::Sums;
use super::sweep::sweep_with;
use super::{CompensateError, Hessian};
use crate::cluster::{Fit, Target, fit_int8};
use crate::error::{KernelError, expect_len};
use crate::formats::{Kind, TILE};
use crate::kernels::Kernels;

const LIMIT: f64 = 127.0;
/// Passes of descent, each behind a new scale.
const PASSES: usize = 2;
const MARGIN: f64 = 1e-9;

/// Fits `target` row by row: values in -127..=127 (as bytes, `[rows, cols]`) and scales (`[rows]`), with the fit under H.
///
/// # Errors
/// As [`super::Compensator::fit`].
pub fn compensate_int8(
    kernels: &'static Kernels,
    target: &Target<'_>,
    hessian: &Hessian<'_>,
    row_weights: &[f32],
    values: &mut [u8],
    scale: &mut [f16],
) -> Result<Fit, CompensateError> {
    hessian.expect(target.cols, Kind::P8)?;
    expect_len("weights of rows", row_weights.len(), target.rows)?;
    fit_int8(target, values, scale)?;
    let (rows, cols) = (target.rows, target.cols);
    let mut sums = Sums::new(0);
    sums.begin(kernels, target.weights, rows, cols, hessian)?;
    let mut steps = [0.0; TILE];
    for (step, scale) in steps.iter_mut().zip(scale.iter()) {
        *step = scale.to_f64();
    }
    let mut targets = std::mem::take(&mut sums.targets);
    sweep_with(kernels, rows, target.weights, hessian, &mut targets, |row, unit, target| {
        let step = steps[row];
        let whole = if step == 0.0 { 0.0 } else { (target[0] / step).round_ties_even().clamp(-LIMIT, LIMIT) };
        values[row * cols + unit.code] = whole as i8 as u8;
        [whole * step, 0.0]
    })?;
    // Q = V H with V the whole numbers: (Ŵ - W) H = step · Q - W H.
    let mut stored = Vec::new();
    let whole = |values: &[u8], row: usize, col: usize| f64::from(values[row * cols + col] as i8);
    sums.multiply(kernels, rows, hessian, |row, col| whole(values, row, col), &mut stored)?;
    let mut fit = Fit::default();
    for row in 0..rows {
        let of_row = row * cols..(row + 1) * cols;
        let mut work = Row {
            kernels,
            hessian,
            values: &mut values[of_row.clone()],
            stored: &mut stored[of_row.clone()],
            products: &sums.products[of_row],
            step: steps[row],
        };
        for _ in 0..PASSES {
            work.rescale();
            work.descend()?;
        }
        let error = work.rescale() + sums.energy[row];
        scale[row] = f16::from_f64(work.step);
        fit.error += f64::from(row_weights[row]) * error.max(0.0);
        fit.energy += f64::from(row_weights[row]) * sums.energy[row];
    }
    Ok(fit)
}

struct Row<'a> {
    kernels: &'a Kernels,
    hessian: &'a Hessian<'a>,
    values: &'a mut [u8],
    stored: &'a mut [f64],
    products: &'a [f64],
    step: f64,
}

impl Row<'_> {
    /// The best scale as f16, if it is no worse; returns the error less the row's energy.
    fn rescale(&mut self) -> f64 {
        let (mut square, mut cross) = (0.0, 0.0);
        for ((&value, stored), product) in self.values.iter().zip(&*self.stored).zip(self.products) {
            let value = f64::from(value as i8);
            square += value * stored;
            cross += value * product;
        }
        let error = |s: f64| s * (s * square - 2.0 * cross);
        let new = super::refit::round_scale(cross / square);
        if square > 0.0 && new.is_finite() && error(new) < error(self.step) {
            self.step = new;
        }
        error(self.step)
    }

    fn descend(&mut self) -> Result<(), KernelError> {
        if self.step == 0.0 {
            return Ok(());
        }
        for col in 0..self.values.len() {
            let h = self.hessian.row(col);
            let own = f64::from(h[col]) * self.step;
            // Half the derivative of the error by the whole number, over the step.
            let slope = self.step * self.stored[col] - self.products[col];
            let old = f64::from(self.values[col] as i8);
            let new = (old - slope / own).round_ties_even().clamp(-LIMIT, LIMIT);
            let change = new - old;
            if change * (own * change * (1.0 + MARGIN) + 2.0 * slope) < 0.0 {
                self.values[col] = new as i8 as u8;
                self.kernels.add_scaled(self.stored, change, h)?;
            }
        }
        Ok(())
    }
}
