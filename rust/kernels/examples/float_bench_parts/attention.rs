//! Attention over a cache.

use pocketlm_kernels::{Attention, KV_TOKENS, Kernels, KvBlock, KvType, Level, SPLIT_TOKENS};

use super::shared::{read_rate, slices, values};
use super::{IN_MEMORY, better, rates, wanted};

/// Channels of a head, query heads for each of keys, heads of keys, tokens of the context, those that attend.
const SHAPES: [(usize, usize, usize, usize, usize); 7] = [
    (64, 4, 8, 2048, 1),
    (64, 1, 32, 2048, 1),
    (128, 4, 8, 2048, 1),
    (64, 4, 8, 65536, 1),
    (64, 4, 1, 512, 512),
    (64, 4, 1, 2048, 512),
    (128, 1, 1, 512, 512),
];

pub fn attention(levels: &[&Kernels], filters: &[String], peaks: &dyn Fn(Level) -> Option<f64>) {
    for kv in KvType::ALL {
        for shape in SHAPES {
            let (head_dim, heads, kv_heads, context, tokens) = shape;
            let name = format!(
                "attention {} head_dim {head_dim}, {heads} x {kv_heads} heads, {tokens} tokens at {context}",
                kv.name()
            );
            let chosen: Vec<_> = levels.iter().filter(|k| wanted(filters, &name, k.level())).collect();
            if !chosen.is_empty() {
                bench(&chosen, kv, shape, &name, peaks);
            }
        }
    }
}

/// Attention of `tokens` tokens at the end of `context`, for `kv_heads` key-value heads in turn.
fn bench(
    levels: &[&&Kernels],
    kv: KvType,
    (head_dim, heads, kv_heads, context, tokens): (usize, usize, usize, usize, usize),
    name: &str,
    peaks: &dyn Fn(Level) -> Option<f64>,
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
    let splits = context.div_ceil(SPLIT_TOKENS);
    let len = tokens * heads * (head_dim + 2);
    let mut partials = vec![0.0; splits * len];
    let in_head = context.div_ceil(KV_TOKENS);
    let mut attend = |k: &Kernels, h: usize, out: &mut [f32]| {
        let blocks = &blocks[h * in_head..(h + 1) * in_head];
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
    };
    let mut expected = vec![0.0; tokens * stride];
    (0..kv_heads).for_each(|h| attend(Kernels::get(Level::Scalar).unwrap(), h, &mut expected));
    let size = numbers.len() * if kv == KvType::F16 { 2 } else { 1 };
    let seen: f64 = ends.iter().map(|&e| f64::from(e)).sum();
    let flops = 4.0 * seen * (heads * kv_heads * head_dim) as f64;
    let reading = || (size >= IN_MEMORY).then(|| read_rate(&vec![1; size], size / kv_heads));
    for k in levels {
        let (mut out, before) = (vec![0.0; tokens * stride], reading());
        let t = slices(kv_heads, 0.2, |h| attend(k, h, &mut out));
        assert!(out == expected, "{name} at {} differs from scalar", k.level());
        let rate = better(before, reading());
        println!(
            "{:12} {name}: {:.1} us, {}",
            k.level().name(),
            t * 1e6,
            rates(t, (size as f64, rate), (flops, peaks(k.level())))
        );
    }
}
