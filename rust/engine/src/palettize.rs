//! Palettizes a whole weight: tiles spread over the thread pool, results independent of the number of threads.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use half::f16;
use pocketlm_kernels::cluster::{ClusterError, Clusterer, Fit, Importance, Target, fit_int8};
use pocketlm_kernels::formats::pack;
use pocketlm_kernels::{Dense, Kind, TILE};

use crate::error::EngineError;
use crate::pool::ThreadPool;
use crate::store::{StoreError, widen};

/// Tiles that each thread takes from one dispatch to the pool. Between dispatches other users of the pool have their turn,
/// and the caller may cancel.
const TILES_PER_DISPATCH: usize = 32;

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

/// The parts of a palettized weight, as files hold them.
#[derive(Debug, Clone, PartialEq)]
pub struct Palettized {
    /// `[tiles, bytes_per_tile]`.
    pub codes: Vec<u8>,
    /// `[tiles, 2^bits]`; empty for p8.
    pub codebook: Vec<i8>,
    /// `[outputs]`.
    pub scale: Vec<f16>,
    /// The weighted squared error.
    pub fit: Fit,
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

    fn error(&self, reason: impl Into<String>) -> EngineError {
        StoreError::weight(self.name, self.file, reason).into()
    }

    fn check(&self) -> Result<(), EngineError> {
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
    fn tile(&self, tile: usize) -> Vec<f32> {
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

    fn importance(&self, tile: usize) -> Importance<'a> {
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

/// Palettizes `source`. `go_on` is asked now and then with the number of rows done; if it says no, the result is `None`.
///
/// # Errors
/// When the weight is empty, a value is not finite or too large, or an importance is negative or not finite.
pub fn palettize(
    source: &Source<'_>,
    kind: Kind,
    threads: usize,
    go_on: &mut dyn FnMut(usize) -> bool,
) -> Result<Option<Palettized>, EngineError> {
    source.check()?;
    let (rows, cols) = (source.rows(), source.cols());
    let overflow = |_| source.error(format!("shape [{rows}, {cols}] overflows"));
    let tile_bytes = kind.bytes_per_tile(cols).map_err(overflow)?;
    let mut result = Palettized {
        codes: vec![0; kind.code_bytes(rows, cols).map_err(overflow)?],
        codebook: vec![0; rows.div_ceil(TILE) * kind.codebook_len()],
        scale: vec![f16::ZERO; rows],
        fit: Fit::default(),
    };
    let mut codebooks = result.codebook.chunks_mut(kind.codebook_len().max(1));
    let slots: Vec<Mutex<Slot<'_>>> = result
        .codes
        .chunks_mut(tile_bytes)
        .zip(result.scale.chunks_mut(TILE))
        .enumerate()
        .map(|(tile, (codes, scale))| {
            let codebook = codebooks.next().unwrap_or_default();
            Mutex::new(Slot { tile, codes, codebook, scale, fit: Ok(Fit::default()) })
        })
        .collect();
    let finished = run(source, kind, threads, &slots, go_on)?;
    result.fit = total(source, slots)?;
    Ok(finished.then_some(result))
}

/// The weighted squared error of `source` in `kind`, on at most `most` tiles spread over it.
///
/// # Errors
/// As [`palettize`]. A cancelled measurement is `None`.
pub fn measure(
    source: &Source<'_>,
    kind: Kind,
    most: usize,
    threads: usize,
    go_on: &mut dyn FnMut(usize) -> bool,
) -> Result<Option<Fit>, EngineError> {
    source.check()?;
    let tiles = source.rows().div_ceil(TILE);
    let step = tiles.div_ceil(most.max(1));
    let slot = |tile| {
        Mutex::new(Slot { tile, codes: &mut [], codebook: &mut [], scale: &mut [], fit: Ok(Fit::default()) })
    };
    let slots: Vec<_> = (step / 2..tiles).step_by(step).map(slot).collect();
    let finished = run(source, kind, threads, &slots, go_on)?;
    let fit = total(source, slots)?;
    Ok(finished.then_some(fit))
}

/// Where the results of a tile go. Slices are empty where only the error is wanted.
struct Slot<'a> {
    tile: usize,
    codes: &'a mut [u8],
    codebook: &'a mut [i8],
    scale: &'a mut [f16],
    fit: Result<Fit, String>,
}

fn run(
    source: &Source<'_>,
    kind: Kind,
    threads: usize,
    slots: &[Mutex<Slot<'_>>],
    go_on: &mut dyn FnMut(usize) -> bool,
) -> Result<bool, EngineError> {
    let threads = threads.max(1);
    let mut done = 0;
    for batch in slots.chunks(threads * TILES_PER_DISPATCH) {
        let next = AtomicUsize::new(0);
        ThreadPool::global().run(threads, |_| {
            let mut clusterer = Clusterer::new(kind);
            while let Some(slot) = batch.get(next.fetch_add(1, Ordering::Relaxed)) {
                let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
                slot.fit = fit(source, kind, clusterer.as_mut(), &mut slot);
            }
        })?;
        done += batch.len();
        if !go_on(source.rows().min(done * TILE)) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn fit(
    source: &Source<'_>,
    kind: Kind,
    clusterer: Option<&mut Clusterer>,
    slot: &mut Slot<'_>,
) -> Result<Fit, String> {
    let weights = source.tile(slot.tile);
    let cols = source.cols();
    let rows = weights.len() / cols;
    let target =
        Target::new(rows, cols, &weights, source.importance(slot.tile)).map_err(|error| error.to_string())?;
    let mut codes = vec![0; weights.len()];
    let mut codebook = vec![0; kind.codebook_len()];
    let mut scale = [f16::ZERO; TILE];
    let outcome = match clusterer {
        Some(clusterer) => clusterer.fit(&target, &mut codes, &mut codebook, &mut scale[..rows]),
        None => fit_int8(&target, &mut codes, &mut scale[..rows]),
    };
    let fit = outcome.map_err(|error| place(error, slot.tile * TILE))?;
    if !slot.codes.is_empty() {
        slot.codes.copy_from_slice(&pack(kind, rows, cols, &codes).map_err(|error| error.to_string())?);
        slot.codebook.copy_from_slice(&codebook);
        slot.scale.copy_from_slice(&scale[..rows]);
    }
    Ok(fit)
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

fn total(source: &Source<'_>, slots: Vec<Mutex<Slot<'_>>>) -> Result<Fit, EngineError> {
    slots.into_iter().try_fold(Fit::default(), |sum, slot| {
        let fit = slot
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner)
            .fit
            .map_err(|reason| source.error(reason))?;
        Ok(Fit { error: sum.error + fit.error, energy: sum.energy + fit.energy })
    })
}

#[cfg(test)]
mod tests {
    use pocketlm_kernels::{DenseType, Palette};

    use super::*;

    fn weights(rows: usize, cols: usize) -> Vec<f32> {
        (0..rows * cols).map(|i| ((i as f32) * 0.37).sin() * ((i % 13) as f32)).collect()
    }

    fn source<'a>(dense: Dense<'a>, transposed: bool, importance: Option<&'a [f32]>) -> Source<'a> {
        Source { name: "w", file: None, dense, transposed, importance }
    }

    fn done(result: Result<Option<Palettized>, EngineError>) -> Palettized {
        result.unwrap().unwrap()
    }

    #[test]
    fn threads_and_storage_order_do_not_matter() {
        let (rows, cols) = (37, 45);
        let plain = weights(rows, cols);
        let mut turned = vec![0.0; plain.len()];
        for (i, &w) in plain.iter().enumerate() {
            turned[i % cols * rows + i / cols] = w;
        }
        let h: Vec<f32> = (0..cols).map(|i| i as f32).collect();
        let every: Vec<f32> = (0..rows).flat_map(|_| h.clone()).collect();
        for kind in Kind::ALL {
            let dense = Dense::from_f32(rows, cols, &plain).unwrap();
            let one = done(palettize(&source(dense, false, Some(&h)), kind, 1, &mut |_| true));
            assert_eq!(one, done(palettize(&source(dense, false, Some(&h)), kind, 3, &mut |_| true)));
            let transposed = source(Dense::from_f32(cols, rows, &turned).unwrap(), true, Some(&h));
            assert_eq!(one, done(palettize(&transposed, kind, 2, &mut |_| true)));
            let per_element = done(palettize(&source(dense, false, Some(&every)), kind, 2, &mut |_| true));
            assert_eq!(one.codes, per_element.codes);
            let bits: Vec<u16> = one.scale.iter().map(|s| s.to_bits()).collect();
            Palette::new(kind, rows, cols, &one.codes, &one.codebook, &bits).unwrap().check_values().unwrap();
            let measured =
                measure(&source(dense, false, Some(&h)), kind, 100, 2, &mut |_| true).unwrap().unwrap();
            assert_eq!(measured, one.fit);
        }
    }

    #[test]
    fn what_cannot_be_palettized_is_refused_by_name() {
        let mut values = weights(20, 40);
        values[18 * 40 + 7] = f32::NAN;
        let dense = Dense::from_f32(20, 40, &values).unwrap();
        let message =
            palettize(&source(dense, false, None), Kind::P4, 2, &mut |_| true).unwrap_err().to_string();
        assert!(message.contains("\"w\"") && message.contains("[18, 7]"), "{message}");
        let empty = Dense::new(DenseType::F16, 0, 40, &[]).unwrap();
        assert!(palettize(&source(empty, false, None), Kind::P4, 2, &mut |_| true).is_err());
        let good = weights(20, 40);
        let dense = Dense::from_f32(20, 40, &good).unwrap();
        assert!(palettize(&source(dense, false, Some(&[1.0; 39])), Kind::P4, 2, &mut |_| true).is_err());
        assert!(palettize(&source(dense, false, Some(&[-1.0; 40])), Kind::P4, 2, &mut |_| true).is_err());
        assert_eq!(palettize(&source(dense, false, None), Kind::P4, 2, &mut |_| false), Ok(None));
    }
}
