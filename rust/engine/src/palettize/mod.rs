//! Palettizes a whole weight: tiles spread over the thread pool, results independent of the number of threads.

mod factor;
mod fitter;
mod moment;
mod source;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_compensated;

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use half::f16;
use pocketlm_kernels::cluster::Fit;
use pocketlm_kernels::{Kernels, Kind, TILE};

pub use factor::Factored;
pub use moment::SecondMoment;
pub use source::Source;

use fitter::{Fitter, Slot};

use crate::error::EngineError;
use crate::pool::ThreadPool;
use crate::reserve::filled;

/// Tiles that each thread takes from one dispatch to the pool. Between dispatches other users of the pool have their turn,
/// and the caller may cancel.
const TILES_PER_DISPATCH: usize = 32;
/// The same where a tile takes up to a second.
const LARGE_TILES_PER_DISPATCH: usize = 4;

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

/// What is to be palettized, and how.
struct Work<'a> {
    source: &'a Source<'a>,
    kind: Kind,
    rows: Range<usize>,
    method: Method<'a>,
    threads: usize,
}

/// How the tiles of a weight are fitted.
#[derive(Debug, Clone, Copy)]
enum Method<'a> {
    /// Every weight by itself.
    Single,
    /// Errors of the weights of a row together; each row's counts by its weight.
    Compensated(&'a Factored, &'a [f32]),
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
    Work::all(source, kind, threads).palettize(go_on)
}

/// Palettizes rows of `source`, which begin with a tile, for inputs of the second moment in `hessian`: the fit is that of
/// Σ_r weight_r (w_r - ŵ_r) H (w_r - ŵ_r)ᵀ. `row_weights` has one positive number for each of the rows; the importance of `source` is
/// not used.
///
/// # Errors
/// As [`palettize`], and when the rows or the numbers of inputs or of weights do not fit, or a weight of a row is not positive.
pub fn compensate(
    source: &Source<'_>,
    kind: Kind,
    rows: Range<usize>,
    hessian: &Factored,
    row_weights: &[f32],
    threads: usize,
    go_on: &mut dyn FnMut(usize) -> bool,
) -> Result<Option<Palettized>, EngineError> {
    let bad = |reason: String| Err(EngineError::parameter("compensation", reason));
    if rows.start >= rows.end || rows.end > source.rows() || !rows.start.is_multiple_of(TILE) {
        return bad(format!("rows {rows:?} of {}; they must begin with a tile of {TILE}", source.rows()));
    }
    if hessian.size() != source.cols() {
        return bad(format!("a second moment of {} inputs for {}", hessian.size(), source.cols()));
    }
    if row_weights.len() != rows.len() || !row_weights.iter().all(|w| *w > 0.0 && w.is_finite()) {
        return bad("row_weights must be one positive number for each row".into());
    }
    Work { source, kind, rows, method: Method::Compensated(hessian, row_weights), threads }.palettize(go_on)
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
    let finished = Work::all(source, kind, threads).run(&slots, go_on)?;
    let fit = total(source, slots)?;
    Ok(finished.then_some(fit))
}

impl<'a> Work<'a> {
    /// All rows of a weight, every number by itself.
    fn all(source: &'a Source<'a>, kind: Kind, threads: usize) -> Self {
        Self { source, kind, rows: 0..source.rows(), method: Method::Single, threads }
    }

    /// Fits and packs every tile of the rows.
    fn palettize(&self, go_on: &mut dyn FnMut(usize) -> bool) -> Result<Option<Palettized>, EngineError> {
        let Self { source, kind, .. } = *self;
        source.check()?;
        let (rows, cols) = (self.rows.len(), source.cols());
        let overflow = |_| source.error(format!("shape [{rows}, {cols}] overflows"));
        let tile_bytes = kind.bytes_per_tile(cols).map_err(overflow)?;
        let what = |part: &str| format!("the {part} of {:?}", source.name);
        let mut result = Palettized {
            codes: filled(kind.code_bytes(rows, cols).map_err(overflow)?, 0, &what("codes"))?,
            codebook: filled(rows.div_ceil(TILE) * kind.codebook_len(), 0, &what("codebooks"))?,
            scale: filled(rows, f16::ZERO, &what("scales"))?,
            fit: Fit::default(),
        };
        let first = self.rows.start / TILE;
        let mut codebooks = result.codebook.chunks_mut(kind.codebook_len().max(1));
        let slots: Vec<Mutex<Slot<'_>>> = result
            .codes
            .chunks_mut(tile_bytes)
            .zip(result.scale.chunks_mut(TILE))
            .enumerate()
            .map(|(tile, (codes, scale))| {
                let codebook = codebooks.next().unwrap_or_default();
                Mutex::new(Slot { tile: first + tile, codes, codebook, scale, fit: Ok(Fit::default()) })
            })
            .collect();
        let finished = self.run(&slots, go_on)?;
        result.fit = total(source, slots)?;
        Ok(finished.then_some(result))
    }

    /// Fits the tiles of `slots`; false if `go_on` said no.
    fn run(
        &self,
        slots: &[Mutex<Slot<'_>>],
        go_on: &mut dyn FnMut(usize) -> bool,
    ) -> Result<bool, EngineError> {
        let Self { source, kind, ref rows, method, threads } = *self;
        let threads = threads.max(1);
        let kernels = Kernels::best().map_err(|error| EngineError::Unsupported(error.to_string()))?;
        let each =
            if matches!(method, Method::Single) { TILES_PER_DISPATCH } else { LARGE_TILES_PER_DISPATCH };
        let mut done = 0;
        // Kept from one dispatch to the next for their scratch.
        let fitters: Vec<Mutex<Fitter<'_>>> =
            (0..threads).map(|_| Mutex::new(Fitter::new(kernels, kind, rows, method))).collect();
        for batch in slots.chunks(threads.saturating_mul(each)) {
            let next = AtomicUsize::new(0);
            ThreadPool::global().run(threads, |team| {
                let mut fitter = fitters[team.index()].lock().unwrap_or_else(PoisonError::into_inner);
                while let Some(slot) = batch.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
                    slot.fit = fitter.fit(source, &mut slot);
                }
            })?;
            done += batch.len();
            if !go_on(rows.len().min(done * TILE)) {
                return Ok(false);
            }
        }
        Ok(true)
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
