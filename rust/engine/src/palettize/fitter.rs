//! One tile of a weight: fitted, packed, and put where it belongs.

use std::ops::Range;

use half::f16;
use pocketlm_kernels::cluster::{
    ClusterError, CompensateError, Compensator, Fit, Fitter as Single, Importance, Target, compensate_int8,
};
use pocketlm_kernels::formats::pack;
use pocketlm_kernels::{Kernels, Kind, TILE};

use super::{Method, Source};

/// Where the results of a tile go. Slices are empty where only the error is wanted.
pub(super) struct Slot<'a> {
    /// Tile of the whole weight.
    pub tile: usize,
    pub codes: &'a mut [u8],
    pub codebook: &'a mut [i8],
    pub scale: &'a mut [f16],
    pub fit: Result<Fit, String>,
}

/// What a thread needs to fit tiles one after the other.
pub(super) struct Fitter<'a> {
    kernels: &'static Kernels,
    kind: Kind,
    /// First of the rows that `method` speaks of.
    first: usize,
    method: Method<'a>,
    single: Option<Single>,
    compensator: Option<Compensator>,
}

impl<'a> Fitter<'a> {
    /// For the rows `of` of a weight.
    pub fn new(kernels: &'static Kernels, kind: Kind, of: &Range<usize>, method: Method<'a>) -> Self {
        let single = matches!(method, Method::Single).then(|| Single::new(kind));
        Self {
            kernels,
            kind,
            first: of.start,
            method,
            compensator: if single.is_some() { None } else { Compensator::new(kernels, kind) },
            single,
        }
    }

    /// Fits a tile of `source`.
    pub fn fit(&mut self, source: &Source<'_>, slot: &mut Slot<'_>) -> Result<Fit, String> {
        let weights = source.tile(slot.tile);
        let cols = source.cols();
        let rows = weights.len() / cols;
        let mut codes = vec![0; rows * self.kind.codes_per_row(cols)];
        let mut codebook = vec![0; self.kind.codebook_len()];
        let mut scale = [f16::ZERO; TILE];
        let parts = (&mut codes[..], &mut codebook[..], &mut scale[..rows]);
        let place = |error| place(error, slot.tile * TILE);
        let fit = match self.method {
            Method::Single => {
                let importance = source.importance(slot.tile);
                let target =
                    Target::new(rows, cols, &weights, importance).map_err(|error| error.to_string())?;
                let single = self.single.get_or_insert_with(|| Single::new(self.kind));
                single.fit(&target, parts.0, parts.1, parts.2).map_err(place)?
            }
            Method::Compensated(factored, row_weights) => {
                let hessian = factored.hessian().map_err(|error| error.to_string())?;
                let own = &row_weights[slot.tile * TILE - self.first..][..rows];
                let importance: Vec<f32> =
                    own.iter().flat_map(|w| hessian.diagonal().map(move |h| w * h)).collect();
                let importance = Importance::Elements(&importance);
                let target =
                    Target::new(rows, cols, &weights, importance).map_err(|error| error.to_string())?;
                match &mut self.compensator {
                    Some(compensator) => compensator.fit(&target, &hessian, own, parts.0, parts.1, parts.2),
                    None => compensate_int8(self.kernels, &target, &hessian, own, parts.0, parts.2),
                }
                .map_err(|error| match error {
                    CompensateError::Cluster(error) => place(error),
                    CompensateError::Kernel(error) => error.to_string(),
                })?
            }
        };
        if !slot.codes.is_empty() {
            let packed = pack(self.kind, rows, cols, &codes).map_err(|error| error.to_string())?;
            slot.codes.copy_from_slice(&packed);
            slot.codebook.copy_from_slice(&codebook);
            slot.scale.copy_from_slice(&scale[..rows]);
        }
        Ok(fit)
    }
}

fn place(error: ClusterError, first_row: usize) -> String {
    match error {
        ClusterError::NotFinite { row, col } => {
            format!("the value at [{}, {col}] is not finite", first_row + row)
        }
        ClusterError::TooLarge { row } => {
            format!("row {} holds values too large for f16 scales", first_row + row)
        }
    }
}
