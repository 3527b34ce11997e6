//! What several of the benchmarks use.

#![allow(dead_code, reason = "not each of them uses all")]

use std::hint::black_box;
use std::time::{Duration, Instant};

/// Numbers from -1 to 1 in no order.
pub fn values(n: usize) -> Vec<f32> {
    (0..n as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / 8_388_608.0 - 1.0).collect()
}

/// Seconds of the fastest of several runs, over so many in all.
pub fn fastest(seconds: f64, mut run: impl FnMut()) -> f64 {
    let (begin, mut best) = (Instant::now(), f64::INFINITY);
    run();
    while best == f64::INFINITY || begin.elapsed().as_secs_f64() < seconds {
        let start = Instant::now();
        run();
        best = best.min(start.elapsed().as_secs_f64());
    }
    best
}

/// The sum of the best times of so many slices of a piece of work, in seconds: others may be using the machine.
pub fn slices(count: usize, seconds: f64, mut run: impl FnMut(usize)) -> f64 {
    let mut best = vec![f64::INFINITY; count];
    let (mut rounds, begin) = (0, Instant::now());
    while rounds < 2 || begin.elapsed().as_secs_f64() < seconds {
        for (i, best) in best.iter_mut().enumerate() {
            let start = Instant::now();
            run(i);
            *best = best.min(start.elapsed().as_secs_f64());
        }
        rounds += 1;
    }
    best.into_iter().sum()
}

/// Bytes per second of reading, in slices of so many: front to back, or in four streams at once, as a product of several rows of
/// weights reads, whichever is faster.
pub fn read_rate(bytes: &[u8], slice: usize) -> f64 {
    let mut best = vec![Duration::MAX; bytes.len().div_ceil(slice)];
    for streams in [1, 4].into_iter().cycle().take(12) {
        for (best, slice) in best.iter_mut().zip(bytes.chunks(slice)) {
            let start = Instant::now();
            if streams == 1 {
                read::<1>(slice)
            } else {
                read::<4>(slice)
            }
            *best = start.elapsed().min(*best);
        }
    }
    bytes.len() as f64 / best.into_iter().sum::<Duration>().as_secs_f64()
}

fn read<const STREAMS: usize>(bytes: &[u8]) {
    let (words, _) = bytes.as_chunks::<64>();
    let parts: [_; STREAMS] = std::array::from_fn(|i| {
        let each = words.len() / STREAMS;
        &words[i * each..if i + 1 == STREAMS { words.len() } else { (i + 1) * each }]
    });
    let each = parts[0].len() / (4 / STREAMS) * (4 / STREAMS);
    // As many independent sums as hide the latency of adding.
    let mut sums = [[0u8; 64]; 4];
    for at in (0..each).step_by(4 / STREAMS) {
        for (i, sum) in sums.iter_mut().enumerate() {
            let word = &parts[i % STREAMS][at + i / STREAMS];
            sum.iter_mut().zip(word).for_each(|(sum, byte)| *sum = sum.wrapping_add(*byte));
        }
    }
    black_box(sums);
}
