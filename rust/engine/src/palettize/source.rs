//! A weight to palettize, tile by tile, in whichever order it is stored.

use std::path::Path;

use pocketlm_kernels::cluster::Importance;
use pocketlm_kernels::{Dense, TILE};

use crate::error::EngineError;
use crate::store::{StoreError, widen};

/// A weight to palettize.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    /// Name for error messages.
    pub name: &'a str,
    /// File for error messages.
    pub file: Option<&'a Path>,
    /// The elements: `[outputs, inputs]`, or `[inputs, outputs]` if `transposed`.
    pub dense: Dense<'a>,
    /// Whether the elements are stored as `[inputs, outputs]`.
    pub transposed: bool,
    /// Factors of the squared errors: one for each input, or one for each weight as `[outputs, inputs]`.
    pub importance: Option<&'a [f32]>,
}

impl<'a> Source<'a> {
    /// Output rows.
    pub fn rows(&self) -> usize {
        if self.transposed { self.dense.cols() } else { self.dense.rows() }
    }

    /// Inputs of a row.
    pub fn cols(&self) -> usize {
        if self.transposed { self.dense.rows() } else { self.dense.cols() }
    }

    pub(super) fn error(&self, reason: impl Into<String>) -> EngineError {
        StoreError::weight(self.name, self.file, reason).into()
    }

    pub(super) fn check(&self) -> Result<(), EngineError> {
        let (rows, cols) = (self.rows(), self.cols());
        if rows == 0 || cols == 0 {
            return Err(self.error(format!("shape [{rows}, {cols}] has no elements")));
        }
        let factors = self.importance.map_or(cols, <[f32]>::len);
        if factors != cols && Some(factors) != rows.checked_mul(cols) {
            return Err(self.error(format!("{factors} importances for shape [{rows}, {cols}]")));
        }
        Ok(())
    }

    /// The weights of a tile as float32, `[rows of the tile, inputs]`.
    pub(super) fn tile(&self, tile: usize) -> Vec<f32> {
        let (rows, cols) = (tile * TILE..self.rows().min((tile + 1) * TILE), self.cols());
        let dtype = self.dense.dtype();
        let stored = |row: usize| self.dense.row_bytes(row).unwrap_or_default();
        if !self.transposed {
            return rows.flat_map(|row| widen(dtype, stored(row))).collect();
        }
        let mut out = vec![0.0; rows.len() * cols];
        for col in 0..cols {
            let part = widen(dtype, &stored(col)[rows.start * dtype.size()..rows.end * dtype.size()]);
            for (row, value) in part.into_iter().enumerate() {
                out[row * cols + col] = value;
            }
        }
        out
    }

    pub(super) fn importance(&self, tile: usize) -> Importance<'a> {
        match self.importance {
            None => Importance::Uniform,
            Some(factors) if factors.len() == self.cols() => Importance::Columns(factors),
            Some(factors) => {
                let end = self.rows().min((tile + 1) * TILE);
                Importance::Elements(&factors[tile * TILE * self.cols()..end * self.cols()])
            }
        }
    }
}
