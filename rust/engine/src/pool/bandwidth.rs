//! How fast the machine reads memory: the bound of decoding.

use std::time::{Duration, Instant};

use memmap2::MmapMut;

use super::ThreadPool;
use crate::error::EngineError;

/// Far larger than caches of today's processors.
const BYTES: usize = 512 << 20;
/// Bytes that a thread reads in one go.
const PART: usize = 1 << 20;

/// Bytes per second that `threads` threads of the pool read together, each a part of a buffer of 512 MiB, again and again for about
/// `time`. The best pass counts: others were disturbed.
///
/// # Errors
/// When there is no memory for the buffer.
pub fn read_bandwidth(threads: usize, time: Duration) -> Result<f64, EngineError> {
    let mut map = MmapMut::map_anon(BYTES).map_err(|_| EngineError::Memory {
        what: "measuring bandwidth".into(),
        needed: BYTES as u64,
        available: 0,
    })?;
    // As for weights and cache: what page tables cost is not the memory's speed.
    #[cfg(target_os = "linux")]
    let _ = map.advise(memmap2::Advice::HugePage);
    // Not zero: the system maps pages that hold nothing to one page.
    map.fill(1);
    read_bandwidth_of(&[&map], threads, time)
}

/// The same for memory that is there: bytes of `buffers` per second. Where memory differs from place to place (pages of several
/// memory controllers, files in small pages), this is the bound of what reads just these.
///
/// # Errors
/// When a worker failed.
pub fn read_bandwidth_of(buffers: &[&[u8]], threads: usize, time: Duration) -> Result<f64, EngineError> {
    let parts: Vec<&[u8]> = buffers.iter().flat_map(|buffer| buffer.chunks(PART)).collect();
    let bytes: usize = parts.iter().map(|part| part.len()).sum();
    let share = parts.len().div_ceil(threads.max(1)).max(1);
    let mut best = f64::INFINITY;
    let started = Instant::now();
    let pool = ThreadPool::global();
    loop {
        let begin = Instant::now();
        pool.run(threads, |team| {
            for parts in parts.chunks(share).skip(team.index()).step_by(team.size()) {
                parts.iter().for_each(|part| {
                    std::hint::black_box(sum(part));
                });
            }
        })?;
        best = best.min(begin.elapsed().as_secs_f64());
        if started.elapsed() >= time {
            return Ok(bytes as f64 / best);
        }
    }
}

/// Enough independent sums that reading is the bound, not adding.
fn sum(bytes: &[u8]) -> u64 {
    // SAFETY: any eight bytes are a u64, and bytes are initialised.
    let (_, words, _) = unsafe { bytes.align_to::<u64>() };
    let (blocks, rest) = words.as_chunks::<32>();
    let mut sums = [0u64; 32];
    for block in blocks {
        for (sum, word) in sums.iter_mut().zip(block) {
            *sum = sum.wrapping_add(*word);
        }
    }
    rest.iter().chain(&sums).fold(0, |sum, word| sum.wrapping_add(*word))
}
