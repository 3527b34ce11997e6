//! Codes that make up for each other's errors: a tile fitted to what its outputs should be, not to its weights.
//!
//! With H the second moment of the inputs, the mean square error of a row w that is stored as ŵ is (w - ŵ) H (w - ŵ)ᵀ. That
//! counts errors of different inputs together, so the error of one code can be made up for by the next. From the clustering
//! that takes every weight by itself ([`Fitter`]), the codes come from a sweep over the inputs that compensates as it
//! goes ([`sweep`]: GPTQ, arXiv 2210.17323, in the form of LDLQ, arXiv 2307.13304, with rounding to the tile's codebook); then
//! three steps alternate, none of which raises the error: cyclic coordinate descent over codes ([`descent`]; LNQ of
//! arXiv 2505.07004), and codebook and row scales by least squares under H, restricted to what files hold ([`refit`]).
//!
//! All sums are float64, in a fixed order.

mod descent;
mod hessian;
mod int8;
mod refit;
mod sums;
mod sweep;
#[cfg(test)]
mod tests;

use half::f16;

pub use hessian::{Hessian, Order};
pub use int8::compensate_int8;

use super::{Fit, Fitter, Target};
use crate::error::{KernelError, expect_len};
use crate::formats::{Kind, TILE};
use crate::kernels::Kernels;
use refit::{Refit, Shape};
use sums::Sums;

/// Rounds of refitting and descent at most, and the relative gain below which they end.
const ROUNDS: usize = 4;
const LEAST_GAIN: f64 = 1e-3;

/// Why a tile could not be fitted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CompensateError {
    /// The weights themselves.
    #[error(transparent)]
    Cluster(#[from] super::ClusterError),
    /// Arguments that do not fit.
    #[error(transparent)]
    Kernel(#[from] KernelError),
}

/// Fits tiles of one palettized kind with a codebook. Holds the scratch, so keep one for each thread.
#[derive(Debug)]
pub struct Compensator {
    kernels: &'static Kernels,
    kind: Kind,
    single: Fitter,
    sums: Sums,
    refit: Refit,
}

/// A tile on its way.
#[derive(Debug)]
struct Tile<'a> {
    rows: usize,
    cols: usize,
    /// Whether a code stands for two weights.
    pairs: bool,
    weights: &'a [f32],
    /// How much the error of each row counts beside the others'.
    row_weights: [f64; TILE],
    codes: &'a mut [u8],
    codebook: &'a mut [i8],
    scale: [f64; TILE],
}

impl Tile<'_> {
    /// Which entry of the codebook stands for a weight.
    #[inline(always)]
    fn component(&self, row: usize, col: usize) -> usize {
        if self.pairs {
            let per_row = self.codes.len() / self.rows;
            let code = self.codes[row * per_row + col / 8 * 4 + col % 4];
            usize::from(code) + col % 8 / 4 * (self.codebook.len() / 2)
        } else {
            self.codes[row * self.cols + col].into()
        }
    }

    /// Puts pairs into ascending order, as files hold them.
    fn sort_pairs(&mut self) {
        if !self.pairs {
            return;
        }
        let (first, second) = self.codebook.split_at_mut(TILE);
        let mut order: [usize; TILE] = std::array::from_fn(|code| code);
        order.sort_by_key(|&code| (first[code], second[code]));
        let mut places = [0; TILE];
        for (place, &code) in order.iter().enumerate() {
            places[code] = place as u8;
        }
        for half in [first, second] {
            let sorted = order.map(|code| half[code]);
            half.copy_from_slice(&sorted);
        }
        self.codes.iter_mut().for_each(|code| *code = places[usize::from(*code)]);
    }
}

impl Compensator {
    /// For tiles of `kind`; none where the kind has no codebook.
    pub fn new(kernels: &'static Kernels, kind: Kind) -> Option<Self> {
        if kind.codebook_len() == 0 {
            return None;
        }
        let (single, shape) = (Fitter::new(kind), Shape::of(kind));
        Some(Self { kernels, kind, single, sums: Sums::new(shape.components()), refit: Refit::new(shape) })
    }

    /// Fits `target`, whose importance serves the first clustering alone, and writes codes (`[rows, kind.codes_per_row(cols)]`, a byte each),
    /// codebook (`[kind.codebook_len()]`, ascending) and scales (`[rows]`). `row_weights` (`[rows]`, positive) says how much the error of
    /// each row counts beside the others'. The fit is that of the weighted errors under H.
    ///
    /// # Errors
    /// When a weight is not finite, or so large that its row's scale is beyond f16, or a length does not fit.
    pub fn fit(
        &mut self,
        target: &Target<'_>,
        hessian: &Hessian<'_>,
        row_weights: &[f32],
        codes: &mut [u8],
        codebook: &mut [i8],
        scale: &mut [f16],
    ) -> Result<Fit, CompensateError> {
        hessian.expect(target.cols, self.kind)?;
        expect_len("weights of rows", row_weights.len(), target.rows)?;
        self.single.fit(target, codes, codebook, scale)?;
        let mut tile = Tile {
            rows: target.rows,
            cols: target.cols,
            pairs: self.kind == Kind::P2v,
            weights: target.weights,
            row_weights: [1.0; TILE],
            codes,
            codebook,
            scale: [0.0; TILE],
        };
        for row in 0..target.rows {
            tile.row_weights[row] = row_weights[row].into();
            tile.scale[row] = scale[row].to_f64();
        }
        let fit = self.improve(&mut tile, hessian)?;
        tile.sort_pairs();
        for (scale, value) in scale.iter_mut().zip(tile.scale) {
            *scale = f16::from_f64(value);
        }
        Ok(fit)
    }

    fn improve(&mut self, tile: &mut Tile<'_>, hessian: &Hessian<'_>) -> Result<Fit, KernelError> {
        let (kernels, sums) = (self.kernels, &mut self.sums);
        sums.begin(kernels, tile.weights, tile.rows, tile.cols, hessian)?;
        sweep::sweep(kernels, tile, hessian, &mut sums.targets)?;
        sums.gather(kernels, tile, hessian)?;
        let mut error = self.refit.refit(tile, sums);
        for _ in 0..ROUNDS {
            sums.residuals(tile);
            if !descent::descend(kernels, tile, hessian, sums)? {
                break;
            }
            let before = error;
            error = self.refit.refit(tile, sums);
            if error > before * (1.0 - LEAST_GAIN) {
                break;
            }
        }
        let energy = (0..tile.rows).map(|row| tile.row_weights[row] * sums.energy[row]).sum();
        Ok(Fit { error: error.max(0.0), energy })
    }
}
