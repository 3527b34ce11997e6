//! Times the float kernels on one thread: `cargo run --release -p pocketlm-kernels --example float_bench -- [substring] ...`.
//!
//! Figures are the best of several runs, at every level of this machine but the scalar one, with which each output is compared
//! first (it is timed where an argument names it). GB/s count the bytes of weights or of the cache that a call reads; shares are of
//! this thread's reading of as much memory, before and behind, if it is more than caches hold, and of multiply-adds from
//! registers. Packed rows are compared, when timed, with products of rows as they are, and have no share of reading. Arguments filter rows: each must occur in "op ... level".

use pocketlm_kernels::{Dense, DenseType, Kernels, Level, PackedRows, Scratch};
use shared::{read_rate, slices, values};

#[path = "float_bench_parts/attention.rs"]
mod attention;
#[path = "float_bench_parts/peaks.rs"]
mod peaks;
#[path = "float_bench_parts/rows.rs"]
mod rows;
mod shared;

/// Outputs of a call where the weights are in memory: shorter than a time slice of the scheduler.
const SLICE: usize = 1024;
const COLS: usize = 2048;

/// Bytes that no cache holds. Shares of reading are said of so many only: how fast a cache could be read depends on the level.
const IN_MEMORY: usize = 64 << 20;

/// Bytes and operations per second, and their shares of what this thread can read and compute.
fn rates(
    seconds: f64,
    (bytes, reading): (f64, Option<f64>),
    (flops, registers): (f64, Option<f64>),
) -> String {
    let share = |rate: f64, of: Option<f64>| {
        of.map_or("-".into(), |of| format!("{:.0} %", 100.0 * rate / of / seconds))
    };
    format!(
        "{:.1} GB/s ({} of reading), {:.1} GFLOP/s ({} of registers)",
        bytes / seconds / 1e9,
        share(bytes, reading),
        flops / seconds / 1e9,
        share(flops, registers)
    )
}

/// Of two measurements of the same, before and behind something.
fn better(before: Option<f64>, behind: Option<f64>) -> Option<f64> {
    before.zip(behind).map(|(before, behind)| before.max(behind))
}

/// Whether a row is asked for.
fn wanted(filters: &[String], name: &str, level: Level) -> bool {
    let name = format!("{name} {level}");
    filters.iter().all(|filter| name.contains(filter.as_str()))
}

fn weights(dtype: DenseType, count: usize) -> Vec<u8> {
    let numbers = values(count);
    match dtype {
        DenseType::F32 => numbers.iter().flat_map(|v| v.to_le_bytes()).collect(),
        DenseType::F16 => numbers.iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect(),
        DenseType::Bf16 => numbers.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect(),
    }
}

/// Products with weights in memory and in the cache, and of several rows.
fn dense(levels: &[&Kernels], filters: &[String], peaks: &dyn Fn(Level) -> Option<f64>) {
    for dtype in DenseType::ALL {
        let cases = [1, 2, 4, 8, 16].map(|m| (m, 32_768, "memory")).into_iter().chain([(1, 256, "cache")]);
        let cases = cases.chain([2, 4, 7, 16, 512].map(|m| (m, 1024, "cache")));
        let cases: Vec<_> = cases
            .map(|(m, n, place)| (m, n, format!("matmul_dense {} m={m} {n}x{COLS} ({place})", dtype.name())))
            .filter(|(_, _, name)| levels.iter().any(|k| wanted(filters, name, k.level())))
            .collect();
        let Some(most) = cases.iter().map(|(_, n, _)| *n).max() else { continue };
        let bytes = weights(dtype, most * COLS);
        let w = Dense::new(dtype, most, COLS, &bytes).unwrap();
        for (m, n, name) in cases {
            let (x, step) = (values(m * COLS), n.min(SLICE));
            let size = n * COLS * dtype.size();
            let slice = step * COLS * dtype.size();
            let reading = || (size >= IN_MEMORY).then(|| read_rate(&bytes[..size], slice));
            let scalar = Kernels::get(Level::Scalar).unwrap();
            let mut expected = vec![0.0; m * step];
            scalar.matmul_dense(&w, &x, m, COLS, n - step..n, &mut expected).unwrap();
            for k in levels.iter().filter(|k| wanted(filters, &name, k.level())) {
                let (mut out, before) = (vec![0.0; m * step], reading());
                let t = slices(n / step, 0.2, |i| {
                    k.matmul_dense(&w, &x, m, COLS, i * step..(i + 1) * step, &mut out).unwrap();
                });
                assert!(out == expected, "{name} at {} differs from scalar", k.level());
                let flops = 2.0 * (m * n * COLS) as f64;
                let rate = better(before, reading());
                let said = rates(t, (size as f64, rate), (flops, peaks(k.level())));
                println!("{:12} {name}: {said}", k.level().name());
            }
        }
    }
}

/// Products of many rows, packed for each call and not, and packed once for weights in memory, which are taken as threads claim them.
fn packed(levels: &[&Kernels], filters: &[String], peaks: &dyn Fn(Level) -> Option<f64>) {
    const CLAIM: usize = 64;
    for dtype in DenseType::ALL {
        let cases =
            [(32, 512, COLS), (64, 512, COLS), (128, 512, COLS), (512, 512, COLS), (128, 512, 4 * COLS)];
        let in_memory = IN_MEMORY / (COLS * dtype.size());
        for (m, n, cols) in cases.into_iter().chain([(128, in_memory, COLS), (128, in_memory / 4, 4 * COLS)])
        {
            let name = |op| format!("{op} {} m={m} {n}x{cols} (many)", dtype.name());
            let names = [name("matmul_packed"), name("matmul_dense")];
            let levels: Vec<_> =
                levels.iter().filter(|k| names.iter().any(|name| wanted(filters, name, k.level()))).collect();
            if levels.is_empty() {
                continue;
            }
            let (bytes, x) = (weights(dtype, n * cols), values(m * cols));
            let w = Dense::new(dtype, n, cols, &bytes).unwrap();
            let step = if n > 512 { CLAIM } else { n };
            for k in levels {
                let (mut scratch, mut expected) = (Scratch::new(), vec![0.0; m * step]);
                let mut data = vec![0.0; PackedRows::floats(m, cols).unwrap()];
                k.pack_rows(&x, m, cols, cols, &mut data).unwrap();
                k.matmul_dense(&w, &x, m, cols, n - step..n, &mut expected).unwrap();
                for (i, name) in names.iter().enumerate().filter(|(_, name)| wanted(filters, name, k.level()))
                {
                    let mut out = vec![0.0; m * step];
                    let t = slices(n / step, 0.5, |at| {
                        let outputs = at * step..(at + 1) * step;
                        if i == 0 {
                            if n == step {
                                k.pack_rows(&x, m, cols, cols, &mut data).unwrap();
                            }
                            let rows = PackedRows::new(m, cols, &data).unwrap();
                            k.matmul_packed(&w, &rows, outputs, &mut scratch, &mut out).unwrap();
                        } else {
                            k.matmul_dense(&w, &x, m, cols, outputs, &mut out).unwrap();
                        }
                    });
                    assert!(out == expected, "{name} at {} differs", k.level());
                    let flops = 2.0 * (m * n * cols) as f64;
                    let said = rates(t, (bytes.len() as f64, None), (flops, peaks(k.level())));
                    println!("{:12} {name}: {said}", k.level().name());
                }
            }
        }
    }
}

fn main() {
    let filters: Vec<String> = std::env::args().skip(1).collect();
    let scalar_too = filters.iter().any(|filter| filter == Level::Scalar.name());
    let levels: Vec<&Kernels> = Level::available()
        .into_iter()
        .filter(|level| *level != Level::Scalar || scalar_too)
        .map(|level| Kernels::get(level).expect("the kernels of a level that is available"))
        .collect();
    let known: Vec<_> = levels.iter().map(|k| (k.level(), peaks::flops(k.level()))).collect();
    let peaks_of = |level: Level| known.iter().find(|(of, _)| *of == level).and_then(|(_, flops)| *flops);
    for (level, flops) in &known {
        if let Some(flops) = flops {
            println!("{:12} multiply-adds from registers: {:.1} GFLOP/s", level.name(), flops / 1e9);
        }
    }
    if let Some(flops) = peaks::bf16_flops() {
        println!("bf16 dot products from registers: {:.1} GFLOP/s", flops / 1e9);
    }
    attention::attention(&levels, &filters, &peaks_of);
    for k in &levels {
        rows::rows(k, &filters);
        rows::sampling(k, &filters);
    }
    dense(&levels, &filters, &peaks_of);
    packed(&levels, &filters, &peaks_of);
}
