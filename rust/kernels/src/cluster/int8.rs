//! 8-bit rows: a scale for each row, values rounded to it.

use half::f16;

use super::{ClusterError, Fit, Target};

/// Largest magnitude of a value.
const LIMIT: f64 = 127.0;
/// Shares of the largest weight that map to [`LIMIT`]. Clipping a few large weights makes all others finer.
const CLIPS: [f64; 5] = [1.0, 0.96, 0.92, 0.88, 0.84];

/// Fits `target` row by row: values in -127..=127 (as bytes, `[rows, cols]`) and scales (`[rows]`).
///
/// For each row several clips are tried; each is refined once by least squares. The best by weighted squared error stays.
///
/// # Errors
/// When a weight is not finite, or so large that its row's scale is beyond f16.
pub fn fit_int8(target: &Target<'_>, values: &mut [u8], scale: &mut [f16]) -> Result<Fit, ClusterError> {
    let mut importance = Vec::new();
    target.effective_importance(&mut importance);
    let target = target.with_importance(&importance);
    let mut total = Fit::default();
    for (row, (values, scale)) in values.chunks_exact_mut(target.cols).zip(scale.iter_mut()).enumerate() {
        let (mut largest, mut energy) = (0.0f64, 0.0);
        for (col, (&w, h)) in target.row(row).enumerate() {
            if !w.is_finite() {
                return Err(ClusterError::NotFinite { row, col });
            }
            let w = f64::from(w);
            largest = largest.max(w.abs());
            energy += h * w * w;
        }
        let (best, error) = search(&target, row, largest, energy).ok_or(ClusterError::TooLarge { row })?;
        let inverse = inverse(best);
        for (value, (&w, _)) in values.iter_mut().zip(target.row(row)) {
            *value = round(f64::from(w) * inverse) as i32 as i8 as u8;
        }
        *scale = best;
        total.error += error;
        total.energy += energy;
    }
    Ok(total)
}

/// The best scale of a row and its error; none if the plain scale is beyond f16.
fn search(target: &Target<'_>, row: usize, largest: f64, energy: f64) -> Option<(f16, f64)> {
    let mut best = (f16::ZERO, energy);
    for clip in CLIPS {
        let mut scale = f16::from_f64(largest * clip / LIMIT);
        if scale.is_infinite() {
            return None;
        }
        let before = best.1;
        for _ in 0..2 {
            let (cross, square) = moments(target, row, inverse(scale));
            let s = scale.to_f64();
            let error = (energy + s * (s * square - 2.0 * cross)).max(0.0);
            if error < best.1 {
                best = (scale, error);
            }
            let refined = f16::from_f64(cross / square);
            if !refined.is_finite() || refined == scale {
                break;
            }
            scale = refined;
        }
        // The error has one valley: once clipping costs more than it gains, it goes on doing so.
        if best.1 >= before {
            break;
        }
    }
    Some(best)
}

/// Σhwq and Σhq² of a row's values q.
fn moments(target: &Target<'_>, row: usize, inverse: f64) -> (f64, f64) {
    target.row(row).fold((0.0, 0.0), |(cross, square), (&w, h)| {
        let w = f64::from(w);
        let value = round(w * inverse);
        (cross + h * w * value, square + h * value * value)
    })
}

fn inverse(scale: f16) -> f64 {
    if scale == f16::ZERO { 0.0 } else { 1.0 / scale.to_f64() }
}

/// To the nearest value, ties to even.
#[inline(always)]
fn round(x: f64) -> f64 {
    // Adding and taking away 1.5·2^52 leaves no bits below one, without a call into the mathematics library.
    const SHIFT: f64 = 6_755_399_441_055_744.0;
    (x.clamp(-LIMIT, LIMIT) + SHIFT) - SHIFT
}
