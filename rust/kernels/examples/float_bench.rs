//! Times the float kernels on one thread: `cargo run --release -p pocketlm-kernels --example float_bench [LEVEL] [FILTER]`.
//!
//! Figures are the best of several runs; GB/s count the bytes of weights or of the cache that a call reads.

use std::time::Instant;

use pocketlm_kernels::sample::{Sampler, SamplingParams};
use pocketlm_kernels::{
    Activation, Attention, Dense, DenseType, KV_TOKENS, Kernels, KvBlock, KvBlockMut, KvType, Level, Norm,
    NormKind, QuantBuffer, SPLIT_TOKENS,
};

/// Seconds of the fastest of several runs, over at least 0.2 s in all.
fn time(mut run: impl FnMut()) -> f64 {
    let (begin, mut best) = (Instant::now(), f64::INFINITY);
    run();
    while best == f64::INFINITY || begin.elapsed().as_secs_f64() < 0.2 {
        let start = Instant::now();
        run();
        best = best.min(start.elapsed().as_secs_f64());
    }
    best
}

fn values(n: usize) -> Vec<f32> {
    (0..n as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / 8_388_608.0 - 1.0).collect()
}

/// What streaming reads alone reach, for comparison with the products whose weights are in DRAM.
fn reading(k: &Kernels) {
    let data = values(64 << 20);
    let mut maxima = vec![0.0; data.len() / 64];
    let t = time(|| {
        k.logit_maxima(&data, &mut maxima).unwrap();
    });
    println!("streaming read of 256 MiB: {:.1} GB/s", data.len() as f64 * 4.0 / t / 1e9);
}

/// What multiply-adds from registers reach, for comparison with products of many rows: in float32 and, where the processor has
/// them, as dot products of bf16.
#[cfg(target_arch = "x86_64")]
mod peak {
    use std::arch::x86_64::*;
    use std::hint::black_box;

    use pocketlm_kernels::simd::Simd;

    /// Sums that wait for nothing: as many as registers allow beside the factors.
    #[inline(always)]
    fn multiply_add<S: Simd, const CHAINS: usize>(s: S, rounds: usize) {
        let mut sums = [s.zero(); CHAINS];
        let (a, b) = black_box((s.splat(0.5), s.splat(1.0)));
        for _ in 0..rounds {
            sums.iter_mut().for_each(|sum| *sum = s.fma(*sum, a, b));
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    pub fn avx2(rounds: usize) {
        // SAFETY: the caller may call this only where the processor has the features.
        multiply_add::<_, 6>(unsafe { pocketlm_kernels::simd::Avx2::new() }, rounds);
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
    pub fn avx512(rounds: usize) {
        // SAFETY: the caller may call this only where the processor has the features.
        multiply_add::<_, 24>(unsafe { pocketlm_kernels::simd::Avx512::new() }, rounds);
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    pub fn bf16(rounds: usize) {
        let mut sums = [_mm512_setzero_ps(); 24];
        // SAFETY: both are 512 bits without invalid values: bf16 numbers 1.
        let one: __m512bh =
            black_box(unsafe { std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi16(0x3f80)) });
        for _ in 0..rounds {
            sums.iter_mut().for_each(|sum| *sum = _mm512_dpbf16_ps(*sum, one, one));
        }
        black_box(sums);
    }
}

#[cfg(target_arch = "x86_64")]
fn peaks(k: &Kernels) {
    const ROUNDS: usize = 4096;
    let wide = k.level() != Level::Avx2 && k.level() != Level::Avx2Vnni;
    if k.level() != Level::Scalar {
        // SAFETY: the kernels of a level exist only where the processor has it, and AVX2 is part of all.
        let t = time(|| unsafe { if wide { peak::avx512(ROUNDS) } else { peak::avx2(ROUNDS) } });
        let chains = if wide { 24 } else { 6 };
        println!("multiply-adds from registers: {:.1} GFLOP/s", (ROUNDS * chains * 32) as f64 / t / 1e9);
    }
    if wide && is_x86_feature_detected!("avx512bf16") {
        // SAFETY: the processor has the features.
        let t = time(|| unsafe { peak::bf16(ROUNDS) });
        println!("bf16 dot products from registers: {:.1} GFLOP/s", (ROUNDS * 24 * 64) as f64 / t / 1e9);
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn peaks(_: &Kernels) {}

fn dense(k: &Kernels) {
    reading(k);
    peaks(k);
    for dtype in DenseType::ALL {
        let (rows, cols) = (32_768, 2048);
        let bytes: Vec<u8> = match dtype {
            DenseType::F32 => values(rows * cols).iter().flat_map(|v| v.to_le_bytes()).collect(),
            DenseType::F16 => {
                values(rows * cols).iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect()
            }
            DenseType::Bf16 => {
                values(rows * cols).iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect()
            }
        };
        let w = Dense::new(dtype, rows, cols, &bytes).unwrap();
        let x = values(cols);
        let mut out = vec![0.0; rows];
        let t = time(|| k.matmul_dense(&w, &x, 1, cols, 0..rows, &mut out).unwrap());
        println!(
            "matmul_dense {} m=1 {rows}x{cols} (DRAM): {:.1} GB/s",
            dtype.name(),
            bytes.len() as f64 / t / 1e9
        );
        let rows = 256;
        let mut out = vec![0.0; rows];
        let t = time(|| k.matmul_dense(&w, &x, 1, cols, 0..rows, &mut out).unwrap());
        let size = (rows * cols * dtype.size()) as f64;
        println!("matmul_dense {} m=1 {rows}x{cols} (cache): {:.1} GB/s", dtype.name(), size / t / 1e9);
        for m in [2, 4, 7, 16, 512] {
            let rows = 1024;
            let x = values(m * cols);
            let mut out = vec![0.0; m * rows];
            let t = time(|| k.matmul_dense(&w, &x, m, cols, 0..rows, &mut out).unwrap());
            let flops = 2.0 * (m * rows * cols) as f64;
            println!("matmul_dense {} m={m} {rows}x{cols}: {:.1} GFLOP/s", dtype.name(), flops / t / 1e9);
        }
    }
}

/// Attention of `tokens` tokens at the end of `context`, for `kv_heads` key-value heads in turn.
fn attention(
    k: &Kernels,
    kv: KvType,
    head_dim: usize,
    heads: usize,
    kv_heads: usize,
    context: usize,
    tokens: usize,
) {
    let block = KV_TOKENS * head_dim;
    let numbers = values(kv_heads * context.div_ceil(KV_TOKENS) * block * 2);
    let halves: Vec<u16> = numbers.iter().map(|v| half::f16::from_f32(*v).to_bits()).collect();
    let bytes: Vec<i8> = numbers.iter().map(|v| (v * 127.0) as i8).collect();
    let scales = [1.0 / 127.0; KV_TOKENS];
    let stride = kv_heads * heads * head_dim;
    let q = values(tokens * stride);
    let ends: Vec<u32> = (context - tokens..context).map(|p| p as u32 + 1).collect();
    let starts = vec![0; tokens];
    let blocks: Vec<KvBlock<'_>> = match kv {
        KvType::F16 => {
            halves.chunks_exact(2 * block).map(|b| KvBlock::F16 { k: &b[..block], v: &b[block..] }).collect()
        }
        KvType::I8 => bytes
            .chunks_exact(2 * block)
            .map(|b| KvBlock::I8 { k: &b[..block], v: &b[block..], k_scales: &scales, v_scales: &scales })
            .collect(),
    };
    let size = if kv == KvType::F16 { 2.0 } else { 1.0 };
    let splits = context.div_ceil(SPLIT_TOKENS);
    let len = tokens * heads * (head_dim + 2);
    let mut partials = vec![0.0; splits * len];
    let mut out = vec![0.0; tokens * stride];
    let t = time(|| {
        for (h, blocks) in blocks.chunks_exact(context.div_ceil(KV_TOKENS)).enumerate() {
            let splits = blocks.chunks(SPLIT_TOKENS / KV_TOKENS).zip(partials.chunks_exact_mut(len));
            for (split, (blocks, partial)) in splits.enumerate() {
                let a = Attention {
                    head_dim,
                    heads,
                    q: &q[h * heads * head_dim..],
                    token_stride: stride,
                    starts: &starts,
                    ends: &ends,
                    softcap: None,
                    first: split * SPLIT_TOKENS,
                    blocks,
                    ahead: None,
                };
                k.attention_split(&a, partial).unwrap();
            }
            let out = &mut out[h * heads * head_dim..];
            k.attention_merge(&partials, tokens, heads, head_dim, stride, out).unwrap();
        }
    });
    let seen: f64 = ends.iter().map(|&e| f64::from(e)).sum();
    println!(
        "attention {} head_dim {head_dim}, {heads} x {kv_heads} heads, {tokens} tokens at {context}: {:.1} us, {:.1} GB/s, {:.1} GFLOP/s",
        kv.name(),
        t * 1e6,
        numbers.len() as f64 * size / t / 1e9,
        4.0 * seen * (heads * kv_heads * head_dim) as f64 / t / 1e9
    );
}

fn rows(k: &Kernels) {
    let n = 2048;
    let (mut x, delta, weight) = (values(n), vec![0.0; n], values(n));
    let mut buffer = QuantBuffer::new(1, n).unwrap();
    let norm = Norm { kind: NormKind::Rms, eps: 1e-5, weight: Some(&weight), bias: None, offset: 0.0 };
    let mut report = |name: &str, run: &mut dyn FnMut(&mut QuantBuffer)| {
        let t = time(|| (0..100).for_each(|_| run(&mut buffer)));
        println!("{name} of {n}: {:.0} ns", t * 1e7);
    };
    report("add_norm_quantize", &mut |b| {
        let mut rows = b.as_rows_mut();
        k.add_norm_quantize(&norm, &mut x, Some(&delta), None, rows.row_mut(0).as_mut()).unwrap();
    });
    report("quantize", &mut |b| k.quantize(&weight, &mut b.as_rows_mut().row_mut(0).unwrap()).unwrap());
    for a in [Activation::Silu, Activation::Gelu, Activation::GeluTanh] {
        report(&format!("gated_quantize {}", a.name()), &mut |b| {
            k.gated_quantize(a, &weight, &weight, &mut b.as_rows_mut().row_mut(0).unwrap()).unwrap();
        });
    }
    let mut heads = values(n);
    report("norm_heads of 64,", &mut |_| {
        k.norm_heads(&Norm { weight: Some(&weight[..64]), ..norm }, &mut heads, 64).unwrap();
    });
    let (cos, sin) = (vec![0.6; 32], vec![0.8; 32]);
    report("rope halves of 64,", &mut |_| k.rope(&mut heads, 64, &cos, &sin, false).unwrap());
    report("rope interleaved of 64,", &mut |_| k.rope(&mut heads, 64, &cos, &sin, true).unwrap());
    let (mut keys, mut vals) = (vec![0; 64 * 64], vec![0; 64 * 64]);
    report("kv_write f16 of 32 heads of 64,", &mut |_| {
        for i in 0..32 {
            let block = KvBlockMut::F16 { k: &mut keys, v: &mut vals };
            k.kv_write(&weight[..64], &weight[..64], block, i).unwrap();
        }
    });
    let (mut keys, mut vals) = (vec![0; 64 * 64], vec![0; 64 * 64]);
    let (mut k_scales, mut v_scales) = ([0.0; KV_TOKENS], [0.0; KV_TOKENS]);
    report("kv_write int8 of 32 heads of 64,", &mut |_| {
        for i in 0..32 {
            let block = KvBlockMut::I8 {
                k: &mut keys,
                v: &mut vals,
                k_scales: &mut k_scales,
                v_scales: &mut v_scales,
            };
            k.kv_write(&weight[..64], &weight[..64], block, i).unwrap();
        }
    });
}

fn sampling(k: &Kernels) {
    for vocabulary in [32_000, 128_256] {
        let logits: Vec<f32> =
            values(vocabulary).iter().map(|v| v * 8.0 - (1.0001 - v.abs()).ln() * 3.0).collect();
        for (name, params) in [
            ("greedy", SamplingParams { temperature: 0.0, ..Default::default() }),
            ("temperature", SamplingParams::default()),
            ("top_k 50", SamplingParams { top_k: 50, ..Default::default() }),
            ("top_p 0.9", SamplingParams { top_p: 0.9, ..Default::default() }),
            ("logprobs 5", SamplingParams { temperature: 0.0, logprobs: Some(5), ..Default::default() }),
        ] {
            let mut sampler = Sampler::new(params, &[]).unwrap();
            let mut position = 0;
            let t = time(|| {
                position += 1;
                sampler.sample(k, &logits, position).unwrap();
            });
            println!("sample {name} of {vocabulary}: {:.1} us", t * 1e6);
        }
    }
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let level = arguments.next();
    let filter = arguments.next().unwrap_or_default();
    let kernels = match level.as_deref() {
        None | Some("best") => Kernels::best().expect("a level"),
        Some(name) => Level::from_name(name).and_then(Kernels::get).expect("a level that this machine has"),
    };
    println!("level {}", kernels.level());
    if "attention".starts_with(&filter) {
        for kv in KvType::ALL {
            attention(kernels, kv, 64, 4, 8, 2048, 1);
            attention(kernels, kv, 64, 1, 32, 2048, 1);
            attention(kernels, kv, 128, 4, 8, 2048, 1);
            attention(kernels, kv, 64, 4, 8, 65536, 1);
            attention(kernels, kv, 64, 4, 1, 512, 512);
            attention(kernels, kv, 64, 4, 1, 2048, 512);
            attention(kernels, kv, 128, 1, 1, 512, 512);
        }
    }
    if "rows".starts_with(&filter) {
        rows(kernels);
    }
    if "sampling".starts_with(&filter) {
        sampling(kernels);
    }
    if "dense".starts_with(&filter) {
        dense(kernels);
    }
}
