//! Attention against float64, and its independence of levels, of chunks of the prompt and of how queries share a call.

mod common;

use common::{Random, UNIT, assert_close, assert_same, kernels};
use pocketlm_kernels::{Attention, KV_TOKENS, Kernels, KvBlock, SPLIT_TOKENS, reference};
use proptest::prelude::*;

/// The cache of one key-value head.
struct Cache {
    head_dim: usize,
    blocks: Vec<(Vec<u16>, Vec<u16>)>,
}

impl Cache {
    fn new(head_dim: usize, tokens: usize) -> Self {
        let block = || (vec![0; KV_TOKENS * head_dim], vec![0; KV_TOKENS * head_dim]);
        Self { head_dim, blocks: (0..tokens.div_ceil(KV_TOKENS)).map(|_| block()).collect() }
    }
    fn write(&mut self, kernels: &Kernels, position: usize, k: &[f32], v: &[f32]) {
        let (keys, values) = &mut self.blocks[position / KV_TOKENS];
        kernels.kv_write(k, v, keys, values, position % KV_TOKENS).unwrap();
    }
    fn key(&self, position: usize) -> Vec<f64> {
        let (block, slot) = (&self.blocks[position / KV_TOKENS].0, position % KV_TOKENS);
        let at = |d| slot / 16 * 16 * self.head_dim + d * 16 + slot % 16;
        (0..self.head_dim).map(|d| reference::half_to_f64(block[at(d)])).collect()
    }
    fn value(&self, position: usize) -> Vec<f64> {
        let (block, slot) = (&self.blocks[position / KV_TOKENS].1, position % KV_TOKENS);
        block[slot * self.head_dim..][..self.head_dim].iter().map(|&b| reference::half_to_f64(b)).collect()
    }
}

/// The tokens `first..first + n` attend to the cache, each to what its range names; splits as the engine makes them.
#[allow(clippy::too_many_arguments)]
fn run(
    kernels: &Kernels,
    cache: &Cache,
    q: &[f32],
    heads: usize,
    stride: usize,
    starts: &[u32],
    ends: &[u32],
    softcap: Option<f32>,
) -> Vec<f32> {
    let head_dim = cache.head_dim;
    let tokens = ends.len();
    let len = Attention::partial_len(head_dim) * tokens * heads;
    let mut partials = Vec::new();
    let per_split = SPLIT_TOKENS / KV_TOKENS;
    for (split, blocks) in cache.blocks.chunks(per_split).enumerate() {
        let blocks: Vec<KvBlock<'_>> = blocks.iter().map(|(k, v)| KvBlock { k, v }).collect();
        let mut partial = vec![f32::NAN; len];
        let first = split * SPLIT_TOKENS;
        let a = Attention {
            head_dim,
            heads,
            q,
            token_stride: stride,
            starts,
            ends,
            softcap,
            first,
            blocks: &blocks,
        };
        kernels.attention_split(&a, &mut partial).unwrap();
        partials.extend(partial);
    }
    let mut out = vec![f32::NAN; (tokens.max(1) - 1) * stride + heads * head_dim];
    kernels.attention_merge(&partials, tokens, heads, head_dim, stride, &mut out).unwrap();
    out
}

/// A case: a prompt of `tokens`, queries of its last `queries` tokens.
struct Case {
    cache: Cache,
    q: Vec<f32>,
    heads: usize,
    stride: usize,
    starts: Vec<u32>,
    ends: Vec<u32>,
    softcap: Option<f32>,
}

fn case(
    seed: u64,
    head_dim: usize,
    heads: usize,
    tokens: usize,
    queries: usize,
    window: Option<usize>,
) -> Case {
    let mut random = Random(seed);
    let mut cache = Cache::new(head_dim, tokens);
    for position in 0..tokens {
        let (k, v) = (random.normals(head_dim, 1.5), random.normals(head_dim, 1.0));
        cache.write(kernels()[0], position, &k, &v);
    }
    let stride = heads * head_dim + random.below(2) * 5;
    let q = random.normals(queries * stride, 1.0 / (head_dim as f32).sqrt());
    let ends: Vec<u32> = (tokens - queries..tokens).map(|p| p as u32 + 1).collect();
    let starts = ends.iter().map(|&e| window.map_or(0, |w| e.saturating_sub(w as u32))).collect();
    Case { cache, q, heads, stride, starts, ends, softcap: seed.is_multiple_of(3).then_some(4.0) }
}

impl Case {
    fn run(&self, kernels: &Kernels) -> Vec<f32> {
        run(kernels, &self.cache, &self.q, self.heads, self.stride, &self.starts, &self.ends, self.softcap)
    }
    fn rows(&self) -> impl Iterator<Item = (usize, usize)> {
        (0..self.ends.len()).flat_map(|t| (0..self.heads).map(move |h| (t, h)))
    }
}

fn check(case: &Case) {
    let levels = kernels();
    let expected = case.run(levels[0]);
    for k in &levels[1..] {
        for (t, h) in case.rows() {
            let at = t * case.stride + h * case.cache.head_dim;
            let row = at..at + case.cache.head_dim;
            let got = case.run(k);
            assert_same(
                &format!("attention {} token {t} head {h}", k.level()),
                &got[row.clone()],
                &expected[row],
            );
            if case.ends.len() * case.heads > 40 {
                break;
            }
        }
        let got = case.run(k);
        let d = case.cache.head_dim;
        for (t, h) in case.rows() {
            let at = t * case.stride + h * d;
            assert_same("attention", &got[at..at + d], &expected[at..at + d]);
        }
    }
    // One token and one head at a time.
    let best = levels[levels.len() - 1];
    let d = case.cache.head_dim;
    for (t, h) in case.rows() {
        let at = t * case.stride + h * d;
        let one = run(
            best,
            &case.cache,
            &case.q[at..at + d],
            1,
            d,
            &case.starts[t..=t],
            &case.ends[t..=t],
            case.softcap,
        );
        assert_same(&format!("token {t} head {h} alone"), &one, &expected[at..at + d]);
        let range = case.starts[t] as usize..case.ends[t] as usize;
        let keys: Vec<_> = range.clone().map(|p| case.cache.key(p)).collect();
        let values: Vec<_> = range.clone().map(|p| case.cache.value(p)).collect();
        let (exact, size) = reference::attention(&case.q[at..at + d], &keys, &values, case.softcap);
        // A score errs by at most head_dim roundings of Σ|q k|; so does its exponential, relatively; the sums over tokens add
        // one rounding per token, the maxima and merges a few dozen.
        let scores = keys
            .iter()
            .map(|k| k.iter().zip(&case.q[at..at + d]).map(|(k, q)| (k * f64::from(*q)).abs()).sum::<f64>())
            .fold(0.0, f64::max);
        let roundings = 2.0 * (d as f64 + 8.0) * scores + 2.0 * range.len() as f64 + 64.0;
        assert_close("attention", &one, &exact, |i| roundings * UNIT * size[i] + 1e-30);
    }
}

#[test]
fn lengths_around_every_border() {
    for (i, tokens) in [1, 15, 16, 17, 63, 64, 65, 511, 512, 513, 1100].into_iter().enumerate() {
        for (head_dim, heads) in [(64, 4), (20, 1), (128, 3)] {
            check(&case(i as u64, head_dim, heads, tokens, 1, None));
        }
        check(&case(i as u64 + 50, 32, 2, tokens, tokens.min(3), Some(40)));
    }
}

#[test]
fn prefill_equals_its_chunks() {
    let levels = kernels();
    for (head_dim, heads, window) in [(64, 1, None), (80, 5, Some(100)), (16, 8, Some(1)), (33, 2, None)] {
        let whole = case(7, head_dim, heads, 150, 150, window);
        check(&whole);
        let expected = whole.run(levels[levels.len() - 1]);
        for chunk in [1, 7, 64, 100] {
            for from in (0..150).step_by(chunk) {
                let to = (from + chunk).min(150);
                let q = &whole.q[from * whole.stride..];
                let (starts, ends) = (&whole.starts[from..to], &whole.ends[from..to]);
                let got = run(levels[0], &whole.cache, q, heads, whole.stride, starts, ends, whole.softcap);
                for t in from..to {
                    let (at, width) = (t * whole.stride, heads * head_dim);
                    let here = (t - from) * whole.stride;
                    assert_same("a chunk", &got[here..here + width], &expected[at..at + width]);
                }
            }
        }
    }
}

#[test]
fn later_tokens_have_no_influence_even_if_they_are_nan() {
    let mut c = case(1, 64, 4, 130, 1, None);
    (c.starts, c.ends) = (vec![10], vec![70]);
    let expected = c.run(kernels()[0]);
    for position in (0..10).chain(70..130) {
        c.cache.write(kernels()[0], position, &[f32::NAN; 64], &[f32::INFINITY; 64]);
    }
    for k in kernels() {
        assert_same("NaN outside the range", &c.run(k), &expected);
    }
    c.cache.write(kernels()[0], 33, &[f32::NAN; 64], &[1.0; 64]);
    for k in kernels() {
        assert!(
            c.run(k)[..256].iter().all(|v| v.is_nan()),
            "NaN inside the range must show at {}",
            k.level()
        );
    }
}

#[test]
fn rows_that_see_nothing_are_zero_and_first_blocks_may_be_absent() {
    let c = case(3, 32, 2, 600, 1, None);
    for k in kernels() {
        assert_same("nothing", &run(k, &c.cache, &c.q, 2, c.stride, &[9], &[9], None)[..64], &[0.0; 64]);
        // A window that begins in the third block: the first two need not be given.
        let blocks: Vec<KvBlock<'_>> = c.cache.blocks[..8].iter().map(|(k, v)| KvBlock { k, v }).collect();
        let a = Attention {
            head_dim: 32,
            heads: 2,
            q: &c.q,
            token_stride: c.stride,
            starts: &[130],
            ends: &[300],
            softcap: None,
            first: 0,
            blocks: &blocks,
        };
        let (mut all, mut some) = ([0.0; 68], [0.0; 68]);
        k.attention_split(&a, &mut all).unwrap();
        k.attention_split(&Attention { first: 128, blocks: &blocks[2..], ..a }, &mut some).unwrap();
        assert_same("absent blocks", &some, &all);
        assert!(k.attention_split(&Attention { first: 192, blocks: &blocks[3..], ..a }, &mut some).is_err());
    }
}

#[test]
fn wrong_arguments_are_errors() {
    let c = case(3, 32, 2, 600, 1, None);
    let blocks: Vec<KvBlock<'_>> = c.cache.blocks.iter().map(|(k, v)| KvBlock { k, v }).collect();
    let good = Attention {
        head_dim: 32,
        heads: 2,
        q: &c.q,
        token_stride: c.stride,
        starts: &[0],
        ends: &[512],
        softcap: None,
        first: 0,
        blocks: &blocks[..8],
    };
    let k = kernels()[0];
    let mut out = [0.0; 68];
    k.attention_split(&good, &mut out).unwrap();
    let short = [KvBlock { k: &blocks[0].k[1..], v: blocks[0].v }];
    for bad in [
        Attention { head_dim: 0, ..good },
        Attention { head_dim: 1 << 20, ..good },
        Attention { head_dim: 31, ..good },
        Attention { heads: usize::MAX, ..good },
        Attention { heads: 3, ..good },
        Attention { q: &c.q[..63], ..good },
        Attention { starts: &[], ..good },
        Attention { softcap: Some(0.0), ..good },
        Attention { softcap: Some(f32::NAN), ..good },
        Attention { first: 1, ..good },
        Attention { first: 64, ..good },
        Attention { first: usize::MAX - 63, ..good },
        Attention { blocks: &blocks, ..good },
        Attention { blocks: &blocks[..7], ..good },
        Attention { blocks: &short, ends: &[60], ..good },
    ] {
        assert!(k.attention_split(&bad, &mut out).is_err(), "{bad:?}");
    }
    assert!(k.attention_split(&good, &mut out[1..]).is_err());
    assert!(k.attention_merge(&out[1..], 1, 2, 32, 64, &mut [0.0; 64]).is_err());
    assert!(k.attention_merge(&out, 1, 2, 32, 64, &mut [0.0; 63]).is_err());
    assert!(k.kv_write(&[0.0; 32], &[0.0; 31], &mut [0; 2048], &mut [0; 2048], 0).is_err());
    assert!(k.kv_write(&[0.0; 32], &[0.0; 32], &mut [0; 2047], &mut [0; 2048], 0).is_err());
    assert!(k.kv_write(&[0.0; 32], &[0.0; 32], &mut [0; 2048], &mut [0; 2048], 64).is_err());
    assert!(k.kv_write(&[], &[], &mut [], &mut [], 0).is_err());
}

#[test]
fn the_cache_rounds_to_nearest_and_saturates() {
    let k = [1e6, -1e6, f32::INFINITY, f32::NAN, 1.0 + 1.0 / 2048.0, 1.0 + 3.0 / 2048.0, 3e-8, -0.0];
    for kernels in kernels() {
        let (mut keys, mut values) = (vec![7u16; 512], vec![7u16; 512]);
        kernels.kv_write(&k, &k, &mut keys, &mut values, 37).unwrap();
        let got: Vec<u16> = values[37 * 8..38 * 8].to_vec();
        assert_eq!(got[..3], [0x7bff, 0xfbff, 0x7c00]);
        assert!(got[3] & 0x7fff > 0x7c00);
        assert_eq!(got[4..], [0x3c00, 0x3c02, 0x0001, 0x8000], "{}", kernels.level());
        for d in 0..8 {
            assert_eq!(keys[2 * 16 * 8 + d * 16 + 5], got[d]);
        }
        assert_eq!(keys.iter().chain(&values).filter(|&&v| v == 7).count(), 1024 - 16);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn any_shape(seed: u64, head_dim in 1usize..140, heads in 1usize..9, tokens in 1usize..200, last in 1usize..20,
                 window in prop::option::of(1usize..90)) {
        check(&case(seed, head_dim, heads, tokens, last.min(tokens), window));
    }
}
