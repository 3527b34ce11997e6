//! The palettizer's heart: codes, codebook and scales for one tile of 16 rows of a weight.
//!
//! Everything here works on one tile with its own scratch, so that callers spread tiles over threads as they like. Results
//! depend on nothing but the arguments: no randomness, no instruction set.

mod codebook;
mod compensate;
mod int8;
mod pairs;
mod plane;
#[cfg(test)]
mod tests;
mod tile;

pub use codebook::{Grid, Histogram, MAX_CODES, Solver};
pub use compensate::{CompensateError, Compensator, Hessian, Order, compensate_int8};
pub use int8::fit_int8;
pub use pairs::PairClusterer;
pub use tile::Clusterer;

use half::f16;

use crate::error::KernelError;
use crate::formats::{Kind, TILE};

/// Why a tile cannot be palettized.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ClusterError {
    /// A weight is NaN or infinite.
    #[error("the weight at row {row}, column {col} is not finite")]
    NotFinite {
        /// Row within the tile.
        row: usize,
        /// Column.
        col: usize,
    },
    /// The scale of a row would be beyond the largest f16.
    #[error("row {row} holds weights too large for a half-precision scale")]
    TooLarge {
        /// Row within the tile.
        row: usize,
    },
}

/// Fits tiles of any kind. Holds scratch, so keep one for each thread.
#[derive(Debug, Clone)]
pub enum Fitter {
    /// Codes of single weights.
    Scalar(Box<Clusterer>),
    /// Codes of pairs of weights.
    Pairs(Box<PairClusterer>),
    /// Values themselves.
    Int8,
}

impl Fitter {
    /// For tiles of `kind`.
    pub fn new(kind: Kind) -> Self {
        match (Clusterer::new(kind), PairClusterer::new(kind)) {
            (Some(scalar), _) => Fitter::Scalar(Box::new(scalar)),
            (_, Some(pairs)) => Fitter::Pairs(Box::new(pairs)),
            _ => Fitter::Int8,
        }
    }

    /// Fits `target` and writes codes (`[rows, kind.codes_per_row(cols)]`, a byte each, row-major), codebook
    /// (`[kind.codebook_len()]`, ascending) and scales (`[rows]`).
    ///
    /// # Errors
    /// When a weight is not finite, or so large that its row's scale is beyond f16.
    pub fn fit(
        &mut self,
        target: &Target<'_>,
        codes: &mut [u8],
        codebook: &mut [i8],
        scale: &mut [f16],
    ) -> Result<Fit, ClusterError> {
        match self {
            Fitter::Scalar(clusterer) => clusterer.fit(target, codes, codebook, scale),
            Fitter::Pairs(clusterer) => clusterer.fit(target, codes, codebook, scale),
            Fitter::Int8 => fit_int8(target, codes, scale),
        }
    }
}

/// How much the squared error of a weight counts.
#[derive(Debug, Clone, Copy)]
pub enum Importance<'a> {
    /// All alike.
    Uniform,
    /// One factor for each column (input channel), as the mean square of that input's activations.
    Columns(&'a [f32]),
    /// One factor for each weight, `[rows, cols]`, as the diagonal of the Fisher information.
    Elements(&'a [f32]),
}

/// Weighted squared error of a fit, Σh(w - ŵ)², and what it is to be compared with, Σhw².
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Fit {
    /// Σh(w - ŵ)².
    pub error: f64,
    /// Σhw².
    pub energy: f64,
}

/// The weights of a tile: at most 16 rows, row-major, and their importance.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    rows: usize,
    cols: usize,
    weights: &'a [f32],
    importance: Importance<'a>,
}

/// Columns of less than this share of the mean importance count as this share: the weights of an input that calibration
/// never saw are kept near their values all the same.
const LEAST_SHARE: f64 = 1e-6;

impl<'a> Target<'a> {
    /// Checks lengths, and that importance is finite and not negative.
    ///
    /// # Errors
    /// When a length does not fit, there are no rows or more than 16, no columns, or an importance is negative or not finite.
    pub fn new(
        rows: usize,
        cols: usize,
        weights: &'a [f32],
        importance: Importance<'a>,
    ) -> Result<Self, KernelError> {
        let bad = |reason| Err(KernelError::Invalid { what: "tile to palettize", reason });
        if !(1..=TILE).contains(&rows) || cols == 0 || rows.checked_mul(cols) != Some(weights.len()) {
            return bad("rows, columns and number of weights do not fit");
        }
        let (factors, expected): (&[f32], _) = match importance {
            Importance::Uniform => (&[], 0),
            Importance::Columns(factors) => (factors, cols),
            Importance::Elements(factors) => (factors, weights.len()),
        };
        if factors.len() != expected {
            return bad("the number of importances does not fit");
        }
        if !factors.iter().all(|&h| h >= 0.0 && h.is_finite()) {
            return bad("an importance is negative or not finite");
        }
        Ok(Self { rows, cols, weights, importance })
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Importance as the fits use it, positive everywhere: `[cols]`, or `[rows * cols]` where each weight has its own.
    pub fn effective_importance(&self, out: &mut Vec<f32>) {
        out.clear();
        match self.importance {
            Importance::Uniform => out.resize(self.cols, 1.0),
            Importance::Columns(factors) | Importance::Elements(factors) => {
                let mean = factors.iter().map(|&h| f64::from(h)).sum::<f64>() / factors.len() as f64;
                let least =
                    if mean > 0.0 { ((mean * LEAST_SHARE) as f32).max(f32::MIN_POSITIVE) } else { 1.0 };
                out.extend(factors.iter().map(|h| h.max(least)));
            }
        }
    }

    fn with_importance<'b>(&self, factors: &'b [f32]) -> Target<'b>
    where
        'a: 'b,
    {
        let importance = match self.importance {
            Importance::Elements(_) => Importance::Elements(factors),
            _ => Importance::Columns(factors),
        };
        Target { importance, ..*self }
    }

    /// The weights of a row, each with its importance.
    #[inline(always)]
    fn row(&self, row: usize) -> impl Iterator<Item = (&'a f32, f64)> + use<'a> {
        let range = row * self.cols..(row + 1) * self.cols;
        let factors = match self.importance {
            Importance::Uniform => &[],
            Importance::Columns(factors) => factors,
            Importance::Elements(factors) => &factors[range.clone()],
        };
        self.weights[range].iter().zip(factors.iter().map(|&h| f64::from(h)))
    }
}
