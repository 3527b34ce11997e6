//! A second moment, damped and factored for the sweep: H = (I + U) D (I + U)ᵀ.
//!
//! A Cholesky decomposition that begins with the last input, blocked: the block's own inputs by one thread, then every row
//! above it and what the block explains of them by all, row by row independent of each other.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use pocketlm_kernels::cluster::{Hessian, Order};
use pocketlm_kernels::{Kernels, Kind, Outer};

use crate::error::EngineError;
use crate::pool::ThreadPool;

const BLOCK: usize = 64;
/// Rows of a unit of work.
const ROWS: usize = 16;

/// A damped second moment with its factors.
#[derive(Debug)]
pub struct Factored {
    pub(super) moment: Vec<f32>,
    pub(super) factor: Vec<f32>,
    pub(super) pivots: Vec<f64>,
    order: Order,
}

impl Factored {
    /// Adds `damping` times the mean of the diagonal to the diagonal of `moment` (`[inputs, inputs]`, symmetric, positive
    /// semidefinite), and factors it for codes of `kind`. A moment of zeros becomes the identity.
    ///
    /// # Errors
    /// When the moment is not square, symmetric, finite and positive semidefinite, `damping` is not positive, or there is no
    /// memory.
    pub fn new(mut moment: Vec<f32>, damping: f64, kind: Kind, threads: usize) -> Result<Self, EngineError> {
        let bad = |reason: &str| EngineError::parameter("moment", reason);
        let size = moment.len().isqrt();
        if size == 0 || size * size != moment.len() {
            return Err(bad("is not a square matrix"));
        }
        if !(damping > 0.0 && damping.is_finite()) {
            return Err(EngineError::parameter("damping", "must be positive"));
        }
        let symmetric = |(i, row): (usize, &[f32])| (0..i).all(|j| row[j] == moment[j * size + i]);
        if !moment.iter().all(|x| x.is_finite()) || !moment.chunks_exact(size).enumerate().all(symmetric) {
            return Err(bad("holds numbers that are not finite, or is not symmetric"));
        }
        let diagonal = || (0..size).map(|i| f64::from(moment[i * (size + 1)]));
        let mean = diagonal().sum::<f64>() / size as f64;
        if diagonal().any(|h| h < 0.0) {
            return Err(bad("has a negative number on its diagonal"));
        }
        let mean = if mean > 0.0 { mean } else { 1.0 / damping };
        let least = damping * mean;
        for i in 0..size {
            let own = &mut moment[i * (size + 1)];
            *own = (f64::from(*own) + least) as f32;
        }
        let order = Order::new(kind, size);
        let mut work = Vec::new();
        work.try_reserve_exact(size * size).map_err(|_| EngineError::Memory {
            what: format!("factors of a second moment of {size} inputs"),
            needed: 8 * (size * size) as u64,
            available: 0,
        })?;
        for &row in order.columns() {
            work.extend(order.columns().iter().map(|&col| f64::from(moment[row * size + col])));
        }
        // Rounding leaves the pivots of a damped semidefinite matrix near the damping or above it.
        let pivots = decompose(&mut work, size, threads, least / 2.0)?
            .ok_or_else(|| bad("is not positive semidefinite"))?;
        let factor = work.iter().map(|&u| u as f32).collect();
        Ok(Self { moment, factor, pivots, order })
    }

    /// As the fits take it.
    ///
    /// # Errors
    /// Never, in fact: the lengths fit.
    pub fn hessian(&self) -> Result<Hessian<'_>, EngineError> {
        Hessian::new(&self.moment, &self.factor, &self.pivots, &self.order)
            .map_err(|error| EngineError::Internal(error.to_string()))
    }

    /// Number of inputs.
    pub fn size(&self) -> usize {
        self.pivots.len()
    }
}

/// Puts U above the diagonal of `a` (`[size, size]`, of which the upper half is read) and returns D; none if a pivot falls below
/// `least`.
fn decompose(
    a: &mut [f64],
    size: usize,
    threads: usize,
    least: f64,
) -> Result<Option<Vec<f64>>, EngineError> {
    let kernels = Kernels::best().map_err(|error| EngineError::Unsupported(error.to_string()))?;
    let mut pivots = vec![0.0; size];
    for start in (0..size).step_by(BLOCK).rev() {
        let end = size.min(start + BLOCK);
        let own = &mut a[start * size..end * size];
        for j in (start..end).rev() {
            let pivot = own[(j - start) * size + j];
            if pivot.is_nan() || pivot < least {
                return Ok(None);
            }
            pivots[j] = pivot;
            for i in (start..j).rev() {
                let u = own[(i - start) * size + j] / pivot;
                // Row i, columns i to j: what column j explains. Its own entries of column j above i are not divided yet.
                for k in i..j {
                    let other = own[(k - start) * size + j];
                    own[(i - start) * size + k] -= u * other;
                }
            }
            for i in start..j {
                own[(i - start) * size + j] /= pivot;
            }
        }
        explain(kernels, a, size, (start, end), &pivots, threads)?;
    }
    Ok(Some(pivots))
}

/// The rows above a finished block: their part of U, and what remains of them without it.
fn explain(
    kernels: &Kernels,
    a: &mut [f64],
    size: usize,
    (start, end): (usize, usize),
    pivots: &[f64],
    threads: usize,
) -> Result<(), EngineError> {
    let width = end - start;
    let (above, own) = a.split_at_mut(start * size);
    let own = &own[..width * size];
    // Columns of U for all rows above, one after the other: what the second step reads.
    let mut columns = vec![0.0; width * start];
    let units: Vec<Mutex<&mut [f64]>> = above.chunks_mut(ROWS * size).map(Mutex::new).collect();
    for_each(&units, threads, |_, rows| {
        for row in rows.chunks_exact_mut(size) {
            for j in (start..end).rev() {
                let value = row[j];
                row[j] = value / pivots[j];
                for k in start..j {
                    row[k] -= value * own[(k - start) * size + j];
                }
            }
        }
    })?;
    for (unit, rows) in units.iter().enumerate() {
        let rows = rows.lock().unwrap_or_else(PoisonError::into_inner);
        for (i, row) in rows.chunks_exact(size).enumerate() {
            for j in 0..width {
                columns[j * start + unit * ROWS + i] = row[start + j];
            }
        }
    }
    for_each(&units, threads, |unit, rows| {
        let (first, count) = (unit * ROWS, rows.len() / size);
        let mut scaled = Vec::with_capacity(width * count);
        for j in 0..width {
            scaled.extend((0..count).map(|i| -rows[i * size + start + j] * pivots[start + j]));
        }
        let cols = start - first;
        let sum = Outer {
            a: &scaled,
            a_stride: count,
            b: &columns[first..],
            b_stride: start,
            terms: width,
            rows: count,
            cols,
        };
        if let Err(error) = kernels.outer_f64(&sum, &mut rows[first..], size) {
            panic!("a kernel refused its arguments: {error}");
        }
    })
}

fn for_each(
    units: &[Mutex<&mut [f64]>],
    threads: usize,
    work: impl Fn(usize, &mut [f64]) + Sync,
) -> Result<(), EngineError> {
    let next = AtomicUsize::new(0);
    ThreadPool::global().run(threads.max(1), |_| {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(unit) = units.get(index) else { break };
            work(index, &mut unit.lock().unwrap_or_else(PoisonError::into_inner));
        }
    })
}
