//! How fast the machine multiplies int8: the bound of prefill.

use std::time::{Duration, Instant};

use pocketlm_kernels::{level, peak};

use super::ThreadPool;
use crate::error::EngineError;

/// A few tens of microseconds of work: much more than a dispatch, much less than the system's time slices.
const ROUNDS: u64 = 1 << 13;

/// Int8 multiply-adds per second that `threads` threads of the pool do together from registers, in passes over about `seconds`.
/// The best pass counts: others were disturbed.
///
/// # Errors
/// When the instruction set that was asked for is not to be had.
pub fn int8_peak(threads: usize, time: Duration) -> Result<f64, EngineError> {
    let level = level().map_err(|error| EngineError::Unsupported(error.to_string()))?;
    let mut best = 0.0f64;
    let started = Instant::now();
    loop {
        // Each thread's own clock: what it took to wake it is not its speed.
        let rates = std::sync::Mutex::new(0.0);
        ThreadPool::global().run(threads, |_| {
            let mut fastest = 0.0f64;
            for _ in 0..64 {
                let begin = Instant::now();
                let count = peak::int8_products(level, ROUNDS);
                fastest = fastest.max(count as f64 / begin.elapsed().as_secs_f64().max(1e-9));
            }
            *rates.lock().unwrap_or_else(std::sync::PoisonError::into_inner) += fastest;
        })?;
        best = best.max(rates.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner));
        if started.elapsed() >= time {
            return Ok(best);
        }
    }
}
