//! Palettizes a whole weight: tiles spread over the thread pool, results independent of the number of threads.

mod source;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use half::f16;
use pocketlm_kernels::cluster::{ClusterError, Fit, Fitter, Target};
use pocketlm_kernels::formats::pack;
use pocketlm_kernels::{Kind, TILE};

pub use source::Source;

use crate::error::EngineError;
use crate::pool::ThreadPool;

/// Tiles that each thread takes from one dispatch to the pool. Between dispatches other users of the pool have their turn,
/// and the caller may cancel.
const TILES_PER_DISPATCH: usize = 32;

/// The parts of a palettized weight, as files hold them.
#[derive(Debug, Clone, PartialEq)]
pub struct Palettized {
    /// `[tiles, bytes_per_tile]`.
    pub codes: Vec<u8>,
    /// `[tiles, kind.codebook_len()]`.
    pub codebook: Vec<i8>,
    /// `[outputs]`.
    pub scale: Vec<f16>,
    /// The weighted squared error.
    pub fit: Fit,
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
            let mut fitter = Fitter::new(kind);
            while let Some(slot) = batch.get(next.fetch_add(1, Ordering::Relaxed)) {
                let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
                slot.fit = fit(source, kind, &mut fitter, &mut slot);
            }
        })?;
        done += batch.len();
        if !go_on(source.rows().min(done * TILE)) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn fit(source: &Source<'_>, kind: Kind, fitter: &mut Fitter, slot: &mut Slot<'_>) -> Result<Fit, String> {
    let weights = source.tile(slot.tile);
    let cols = source.cols();
    let rows = weights.len() / cols;
    let target =
        Target::new(rows, cols, &weights, source.importance(slot.tile)).map_err(|error| error.to_string())?;
    let mut codes = vec![0; rows * kind.codes_per_row(cols)];
    let mut codebook = vec![0; kind.codebook_len()];
    let mut scale = [f16::ZERO; TILE];
    let outcome = fitter.fit(&target, &mut codes, &mut codebook, &mut scale[..rows]);
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
