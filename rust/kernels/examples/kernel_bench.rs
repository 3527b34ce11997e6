//! Times every kernel of the palettized product: `cargo run --release --example kernel_bench -- [substring] ...`.
//!
//! Prints time, weight bytes per second and operations per second on one thread, with weights in memory (64 MiB, more
//! than the last-level cache) and in the second-level cache (512 KiB), and for many rows; and the share of what bounds it, if that
//! is known: this thread's reading of the same memory, or the level's int8 products from registers. Both are measured first, and all
//! are best times of short slices. Arguments filter rows: each must occur in "op kind variant level place". Outputs are checked
//! against the portable kernel.

use std::collections::HashMap;
use std::ops::Range;
use std::time::{Duration, Instant};

use pocketlm_kernels::registry::{KernelFn, Op, Row, rows};
use pocketlm_kernels::{Kernels, Kind, Level, Palette, QuantBuffer, Scratch, peak};
use shared::read_rate;

mod shared;

/// Tiles per call: one panel of the kernels for many rows, shorter than a time slice of the scheduler.
const SLICE: usize = 4;
/// Inputs of every weight.
const K: usize = 2048;

/// Activations in both forms.
struct Acts {
    m: usize,
    quantized: QuantBuffer,
    floats: Vec<f32>,
}

fn main() {
    let filters: Vec<String> = std::env::args().skip(1).collect();
    println!(
        "{:18} {:4} {:4} {:13} {:5} {:>14} {:>12} {:>8} {:>8}  share",
        "op", "kind", "rows", "level", "place", "N x K", "ns", "GB/s", "GOPS"
    );
    // Multiply-adds per second.
    let peaks: HashMap<_, _> =
        Level::available().into_iter().map(|level| (level, int8_peak(level))).collect();
    for kind in Kind::ALL {
        let outputs = |bytes: usize| bytes * 8 / kind.bits() / K / 64 * 64;
        bench(kind, "mem", outputs(64 << 20), &[1, 2, 4, 8, 16], &filters, &peaks);
        bench(kind, "L2", outputs(512 << 10), &[1, 2, 4, 8, 16], &filters, &peaks);
        bench(kind, "gemm", 8192, &[32, 512], &filters, &peaks);
    }
}

/// Whether a row's kernel is meant for `m` rows, and done within seconds.
fn fits(row: &Row, m: usize, place: &str) -> bool {
    let variant = match (row.op(), row.variant) {
        (Op::MatmulPaletteF32, _) => m == 1 || m >= 16,
        (_, "1") => m == 1,
        (_, "2-16") => m > 1,
        _ => m > 8,
    };
    let portable_is_slow = place == "gemm" || (place == "mem" && m > 1);
    variant && !(row.level == Level::Scalar && portable_is_slow)
}

/// Int8 multiply-adds per second from registers.
fn int8_peak(level: Level) -> f64 {
    const ROUNDS: u64 = 1 << 14;
    let (mut best, begin) = (0f64, Instant::now());
    while begin.elapsed() < Duration::from_millis(50) {
        let start = Instant::now();
        let count = peak::int8_products(level, ROUNDS);
        best = best.max(count as f64 / start.elapsed().as_secs_f64());
    }
    best
}

/// What bounds a product of so many bytes and multiply-adds, and how much of the time it takes.
fn share(
    row: &Row,
    place: &str,
    (bytes, rate): (usize, f64),
    (macs, peak): (usize, f64),
    seconds: f64,
) -> String {
    let memory = if place == "mem" { bytes as f64 / rate } else { 0.0 };
    let compute = if row.op() == Op::MatmulPalette { macs as f64 / peak } else { 0.0 };
    let (least, what) = if memory > compute { (memory, "memory") } else { (compute, "int8") };
    if least == 0.0 { "-".into() } else { format!("{:3.0} % {what}", 100.0 * least / seconds) }
}

fn bench(
    kind: Kind,
    place: &str,
    n: usize,
    counts: &[usize],
    filters: &[String],
    peaks: &HashMap<Level, f64>,
) {
    let chosen: Vec<_> = rows()
        .filter(|r| matches!(r.func, KernelFn::MatmulPalette(_) | KernelFn::MatmulPaletteF32(_)))
        .filter(|r| r.kind == kind.name() && r.level.is_available())
        .filter(|r| {
            let name = format!("{} {} {} {} {place}", r.op().name(), r.kind, r.variant, r.level);
            filters.iter().all(|f| name.contains(f.as_str()))
        })
        .collect();
    if chosen.is_empty() {
        return;
    }
    let mut seed = 1u64;
    let mut next = || {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        seed >> 33
    };
    let (low, high) = kind.grid();
    let span = (i64::from(high) - i64::from(low) + 1) as u64;
    let codes: Vec<u8> = (0..kind.code_bytes(n, K).unwrap()).map(|_| next() as u8).collect();
    let codebook: Vec<i8> =
        (0..n / 16 * kind.codebook_len()).map(|_| (i64::from(low) + (next() % span) as i64) as i8).collect();
    let scale = vec![0x2c00u16; n];
    let w = Palette::new(kind, n, K, &codes, &codebook, &scale).unwrap();
    let rate = read_rate(&codes, SLICE * kind.code_bytes(16, K).unwrap());
    for &m in counts {
        let x = activations(m, &mut next);
        for row in chosen.iter().filter(|r| fits(r, m, place)) {
            let seconds = time(row, &w, &x).as_secs_f64();
            println!(
                "{:18} {:4} {m:<4} {:13} {place:5} {:>14} {:>12.0} {:>8.1} {:>8.0}  {}",
                row.op().name(),
                row.kind,
                row.level.name(),
                format!("{n} x {K}"),
                seconds * 1e9,
                codes.len() as f64 / seconds / 1e9,
                2.0 * (n * K * m) as f64 / seconds / 1e9,
                share(row, place, (codes.len(), rate), (n * K * m, peaks[&row.level]), seconds),
            );
        }
    }
}

fn activations(m: usize, next: &mut impl FnMut() -> u64) -> Acts {
    let floats: Vec<f32> = (0..m * K).map(|_| (next() % 255) as f32 * 0.01 - 1.27).collect();
    let mut quantized = QuantBuffer::new(m, K).unwrap();
    let (kernels, mut view) = (Kernels::get(Level::Scalar).unwrap(), quantized.as_rows_mut());
    for (r, x) in floats.chunks_exact(K).enumerate() {
        kernels.quantize(x, &mut view.row_mut(r).unwrap()).unwrap();
    }
    Acts { m, quantized, floats }
}

/// The sum of the best times of all slices, since others may be using the machine; panics where a result is wrong.
fn time(row: &Row, w: &Palette<'_>, x: &Acts) -> Duration {
    let (m, quantized, mut scratch) = (x.m, x.quantized.as_rows(), Scratch::new());
    let mut call = |tiles: Range<usize>, out: &mut [f32]| match row.func {
        // SAFETY: the level is available, the kernel is of w's kind, and all lengths follow from the shapes
        // of w and x.
        KernelFn::MatmulPalette(kernel) => unsafe { kernel(w, &quantized, tiles, &mut scratch, out) },
        // SAFETY: as above: `x` has m rows of K floats, and K inputs are what w has.
        KernelFn::MatmulPaletteF32(kernel) => unsafe { kernel(w, &x.floats, m, K, tiles, out) },
        _ => unreachable!("filtered by op"),
    };
    let slices: Vec<_> = (0..w.tiles()).step_by(SLICE).map(|t| t..(t + SLICE).min(w.tiles())).collect();
    let mut out = vec![0f32; m * w.tiles() * 16];
    let mut best = vec![Duration::MAX; slices.len()];
    let (mut rounds, begin) = (0, Instant::now());
    while begin.elapsed() < Duration::from_millis(200) || rounds < 6 {
        for (best, tiles) in best.iter_mut().zip(&slices) {
            let out = &mut out[tiles.start * 16 * m..tiles.end * 16 * m];
            let start = Instant::now();
            call(tiles.clone(), out);
            *best = start.elapsed().min(*best);
        }
        rounds += 1;
    }
    let sample = &slices[slices.len() / 2];
    let got = &out[sample.start * 16 * m..sample.end * 16 * m];
    let (kernels, mut expected) = (Kernels::get(Level::Scalar).unwrap(), vec![0f32; got.len()]);
    let scratch = &mut Scratch::new();
    match row.func {
        KernelFn::MatmulPalette(_) => {
            kernels.matmul_palette(w, &quantized, sample.clone(), scratch, &mut expected).unwrap();
        }
        _ => kernels.matmul_palette_f32(w, &x.floats, m, K, sample.clone(), &mut expected).unwrap(),
    }
    assert!(got == expected, "{} {} {} differs from scalar", row.kind, row.variant, row.level);
    best.into_iter().sum()
}
