//! Times every kernel of the palettized product: `cargo run --release --example kernel_bench -- [substring] ...`.
//!
//! Prints time per call, weight bytes per second and int8 operations per second on one thread, with weights in
//! memory (a matrix larger than the last-level cache) and in the second-level cache, and checks each output against the
//! portable kernel. Arguments filter rows: each must occur in "kind variant level place".

use std::time::{Duration, Instant};

use pocketlm_kernels::registry::{KernelFn, Op, rows};
use pocketlm_kernels::{ACT_BLOCK, Kernels, Kind, Level, Palette, QuantBuffer, Scratch};

/// Tiles per call: one panel of the kernels for many rows.
const SLICE: usize = 4;

fn main() {
    let filters: Vec<String> = std::env::args().skip(1).collect();
    println!(
        "{:5} {:5} {:13} {:5} {:>20} {:>12} {:>8} {:>8}",
        "kind", "rows", "level", "place", "N x K", "ns", "GB/s", "GOPS"
    );
    for kind in Kind::ALL {
        // 64 MiB of weights and 512 KiB of weights.
        let shapes = [
            ("mem", (128 << 20) * 4 / kind.bits() / 2048, 2048),
            ("L2", 4096 * 128 / kind.bits() / 256, 2048),
        ];
        for (place, n, k) in shapes {
            let n = n / 64 * 64;
            bench(kind, place, n, k, &[1, 2, 4, 8, 16], &filters);
        }
        bench(kind, "gemm", 8192, 2048, &[512], &filters);
    }
}

fn bench(kind: Kind, place: &str, n: usize, k: usize, counts: &[usize], filters: &[String]) {
    let named = |r: &&pocketlm_kernels::registry::Row| {
        let name = format!("{} {} {} {place}", r.kind, r.variant, r.level);
        r.op() == Op::MatmulPalette
            && r.kind == kind.name()
            && filters.iter().all(|f| name.contains(f.as_str()))
    };
    let chosen: Vec<_> = rows().filter(|r| r.level.is_available()).filter(named).collect();
    if chosen.is_empty() {
        return;
    }
    let mut seed = 1u64;
    let mut next = || {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        seed >> 33
    };
    let (low, high) = kind.grid();
    let codes: Vec<u8> = (0..kind.code_bytes(n, k).unwrap()).map(|_| next() as u8).collect();
    let span = (i64::from(high) - i64::from(low) + 1) as u64;
    let codebook: Vec<i8> =
        (0..n / 16 * kind.codebook_len()).map(|_| (i64::from(low) + (next() % span) as i64) as i8).collect();
    let scale = vec![0x2c00u16; n];
    let w = Palette::new(kind, n, k, &codes, &codebook, &scale).unwrap();
    let mut scratch = Scratch::new();
    let scalar = Kernels::get(Level::Scalar).unwrap();
    for &m in counts {
        let mut x = QuantBuffer::new(m, k).unwrap();
        let mut view = x.as_rows_mut();
        for r in 0..m {
            let row = view.row_mut(r).unwrap();
            row.values[..k].iter_mut().for_each(|q| *q = (next() % 255) as i8);
            row.values[..k].iter_mut().for_each(|q| *q = (*q).max(-127));
            for (b, block) in row.values[..k].chunks(ACT_BLOCK).enumerate() {
                row.sums[b] = block.iter().map(|&q| i32::from(q)).sum();
                row.scales[b] = 0.01;
            }
        }
        // The portable kernel checks a sample of tiles only: it is slow.
        let sample = (n / 32 / SLICE * SLICE)..(n / 32 / SLICE * SLICE + SLICE).min(n / 16);
        let mut expected = vec![0.0; m * sample.len() * 16];
        scalar.matmul_palette(&w, &x.as_rows(), sample.clone(), &mut scratch, &mut expected).unwrap();
        for row in &chosen {
            let fits = match row.variant {
                "1" => m == 1,
                "2-16" => (2..=16).contains(&m),
                _ => m > 16,
            };
            let slow = row.level == Level::Scalar && (place == "gemm" || (place == "mem" && m > 1));
            if !fits || slow {
                continue;
            }
            let KernelFn::MatmulPalette(kernel) = row.func else { continue };
            // Slices shorter than a time slice of the scheduler, each at its best: others may be using the machine.
            let slices: Vec<_> = (0..n / 16).step_by(SLICE).map(|t| t..(t + SLICE).min(n / 16)).collect();
            let mut out = vec![0f32; m * n];
            let mut best = vec![Duration::MAX; slices.len()];
            let (rows, begin) = (x.as_rows(), Instant::now());
            let mut rounds = 0;
            while begin.elapsed() < Duration::from_millis(200) || rounds < 6 {
                rounds += 1;
                for (best, tiles) in best.iter_mut().zip(&slices) {
                    let out = &mut out[tiles.start * 16 * m..tiles.end * 16 * m];
                    let start = Instant::now();
                    // SAFETY: the level is available, and all lengths follow from n, k and m.
                    unsafe { kernel(&w, &rows, tiles.clone(), &mut scratch, out) };
                    *best = start.elapsed().min(*best);
                }
            }
            let best: Duration = best.into_iter().sum();
            let got = &out[sample.start * 16 * m..sample.end * 16 * m];
            assert!(got == expected, "{} {} {} differs from scalar", row.kind, row.variant, row.level);
            let seconds = best.as_secs_f64();
            println!(
                "{:5} {m:<5} {:13} {place:5} {:>20} {:>12} {:>8.1} {:>8.0}",
                row.kind,
                row.level.name(),
                format!("{n} x {k}"),
                best.as_nanos(),
                codes.len() as f64 / seconds / 1e9,
                2.0 * (n * k * m) as f64 / seconds / 1e9,
            );
        }
    }
}
