//! Attention against float64, and its independence of levels, of chunks of the prompt and of how queries share a call.

mod common;

use common::{Random, UNIT, assert_close, assert_same, kernels};
use pocketlm_kernels::{Attention, KV_TOKENS, Kernels, KvBlock, KvBlockMut, KvType, SPLIT_TOKENS, reference};
use proptest::prelude::*;

/// A block of either type: the parts of the other one are empty.
#[derive(Default)]
struct Block {
    halves: (Vec<u16>, Vec<u16>),
    bytes: (Vec<i8>, Vec<i8>),
    scales: (Vec<f32>, Vec<f32>),
}

impl Block {
    /// Not zeros: whatever is masked must not matter.
    fn new(kv: KvType, head_dim: usize) -> Self {
        let len = KV_TOKENS * head_dim;
        match kv {
            KvType::F16 => Self { halves: (vec![0x7e00; len], vec![0x7e00; len]), ..Self::default() },
            KvType::I8 => Self {
                bytes: (vec![-128; len], vec![-128; len]),
                scales: (vec![f32::NAN; KV_TOKENS], vec![f32::NAN; KV_TOKENS]),
                ..Self::default()
            },
        }
    }
    fn view(&self) -> KvBlock<'_> {
        if self.scales.0.is_empty() {
            return KvBlock::F16 { k: &self.halves.0, v: &self.halves.1 };
        }
        let Self { bytes: (k, v), scales: (k_scales, v_scales), .. } = self;
        KvBlock::I8 { k, v, k_scales, v_scales }
    }
    fn view_mut(&mut self) -> KvBlockMut<'_> {
        if self.scales.0.is_empty() {
            return KvBlockMut::F16 { k: &mut self.halves.0, v: &mut self.halves.1 };
        }
        let Self { bytes: (k, v), scales: (k_scales, v_scales), .. } = self;
        KvBlockMut::I8 { k, v, k_scales, v_scales }
    }
    fn key(&self, slot: usize, at: usize) -> f64 {
        match self.view() {
            KvBlock::F16 { k, .. } => reference::half_to_f64(k[at]),
            KvBlock::I8 { k, k_scales, .. } => f64::from(k[at]) * f64::from(k_scales[slot]),
        }
    }
    fn value(&self, slot: usize, at: usize) -> f64 {
        match self.view() {
            KvBlock::F16 { v, .. } => reference::half_to_f64(v[at]),
            KvBlock::I8 { v, v_scales, .. } => f64::from(v[at]) * f64::from(v_scales[slot]),
        }
    }
}

/// The cache of one key-value head.
struct Cache {
    head_dim: usize,
    blocks: Vec<Block>,
}

impl Cache {
    fn new(kv: KvType, head_dim: usize, tokens: usize) -> Self {
        let blocks = (0..tokens.div_ceil(KV_TOKENS)).map(|_| Block::new(kv, head_dim)).collect();
        Self { head_dim, blocks }
    }
    fn write(&mut self, kernels: &Kernels, position: usize, k: &[f32], v: &[f32]) {
        let block = self.blocks[position / KV_TOKENS].view_mut();
        kernels.kv_write(k, v, block, position % KV_TOKENS).unwrap();
    }
    fn key(&self, position: usize) -> Vec<f64> {
        let (block, slot) = (&self.blocks[position / KV_TOKENS], position % KV_TOKENS);
        let at = |d| block.view().dtype().key_at(self.head_dim, slot, d);
        (0..self.head_dim).map(|d| block.key(slot, at(d))).collect()
    }
    /// A query as it is multiplied with keys, and the factor of the products: of bytes it is rounded to bytes itself.
    fn query(&self, q: &[f32]) -> (Vec<f32>, f64) {
        if self.blocks[0].scales.0.is_empty() {
            return (q.to_vec(), 1.0);
        }
        let (bytes, scale, _) = reference::int8(q);
        (bytes.into_iter().map(f32::from).collect(), f64::from(scale))
    }
    fn value(&self, position: usize) -> Vec<f64> {
        let (block, slot) = (&self.blocks[position / KV_TOKENS], position % KV_TOKENS);
        (0..self.head_dim).map(|d| block.value(slot, slot * self.head_dim + d)).collect()
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
        let blocks: Vec<KvBlock<'_>> = blocks.iter().map(Block::view).collect();
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
            ahead: None,
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
    kv: KvType,
    seed: u64,
    head_dim: usize,
    heads: usize,
    tokens: usize,
    queries: usize,
    window: Option<usize>,
) -> Case {
    let mut random = Random(seed);
    let mut cache = Cache::new(kv, head_dim, tokens);
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
        let (query, factor) = case.cache.query(&case.q[at..at + d]);
        let keys: Vec<Vec<f64>> =
            range.clone().map(|p| case.cache.key(p).iter().map(|k| k * factor).collect()).collect();
        let values: Vec<_> = range.clone().map(|p| case.cache.value(p)).collect();
        let (exact, size) = reference::attention(&query, &keys, &values, case.softcap);
        // A score errs by at most head_dim roundings of Σ|q k|; so does its exponential, relatively; the sums over tokens add
        // one rounding per token, the maxima and merges a few dozen.
        let scores = keys
            .iter()
            .map(|k| k.iter().zip(&query).map(|(k, q)| (k * f64::from(*q)).abs()).sum::<f64>())
            .fold(0.0, f64::max);
        // Of int8 products are exact, and a score is rounded twice and a probability once, when they are multiplied with scales:
        // that fits into the constants.
        let roundings = 2.0 * (d as f64 + 8.0) * scores + 2.0 * range.len() as f64 + 64.0;
        assert_close("attention", &one, &exact, |i| roundings * UNIT * size[i] + 1e-30);
    }
}

#[test]
fn lengths_around_every_border() {
    let both = |case: &dyn Fn(KvType) -> Case| KvType::ALL.map(case).iter().for_each(check);
    for (i, tokens) in [1, 15, 16, 17, 63, 64, 65, 511, 512, 513, 1100].into_iter().enumerate() {
        for (head_dim, heads) in [(64, 4), (20, 1), (128, 3)] {
            both(&|kv| case(kv, i as u64, head_dim, heads, tokens, 1, None));
        }
        both(&|kv| case(kv, i as u64 + 50, 32, 2, tokens, tokens.min(3), Some(40)));
    }
}

#[test]
fn prefill_equals_its_chunks() {
    let levels = kernels();
    let shapes = [(64, 1, None), (80, 5, Some(100)), (16, 8, Some(1)), (33, 2, None)];
    for ((head_dim, heads, window), kv) in shapes.into_iter().flat_map(|s| KvType::ALL.map(|kv| (s, kv))) {
        let whole = case(kv, 7, head_dim, heads, 150, 150, window);
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
    KvType::ALL.into_iter().for_each(later_tokens_have_no_influence);
}

fn later_tokens_have_no_influence(kv: KvType) {
    let mut c = case(kv, 1, 64, 4, 130, 1, None);
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
    KvType::ALL.into_iter().for_each(nothing_and_absent_blocks);
}

fn nothing_and_absent_blocks(kv: KvType) {
    let c = case(kv, 3, 32, 2, 600, 1, None);
    for k in kernels() {
        assert_same("nothing", &run(k, &c.cache, &c.q, 2, c.stride, &[9], &[9], None)[..64], &[0.0; 64]);
        // A window that begins in the third block: the first two need not be given.
        let blocks: Vec<KvBlock<'_>> = c.cache.blocks[..8].iter().map(Block::view).collect();
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
            ahead: None,
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
    let other = case(KvType::I8, 3, 32, 2, 64, 1, None);
    let c = case(KvType::F16, 3, 32, 2, 600, 1, None);
    let blocks: Vec<KvBlock<'_>> = c.cache.blocks.iter().map(Block::view).collect();
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
        ahead: None,
    };
    let k = kernels()[0];
    let mut out = [0.0; 68];
    k.attention_split(&good, &mut out).unwrap();
    let first = &c.cache.blocks[0].halves;
    let short = [KvBlock::F16 { k: &first.0[1..], v: &first.1 }];
    let mixed = [blocks[0], other.cache.blocks[0].view()];
    let KvBlock::I8 { k: bytes, v: more, k_scales: scales, .. } = mixed[1] else { unreachable!() };
    let unscaled = [KvBlock::I8 { k: bytes, v: more, k_scales: scales, v_scales: &scales[1..] }];
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
        Attention { blocks: &mixed, ends: &[128], ..good },
        Attention { blocks: &unscaled, ends: &[60], ..good },
    ] {
        assert!(k.attention_split(&bad, &mut out).is_err(), "{bad:?}");
    }
    assert!(k.attention_split(&good, &mut out[1..]).is_err());
    assert!(k.attention_merge(&out[1..], 1, 2, 32, 64, &mut [0.0; 64]).is_err());
    assert!(k.attention_merge(&out, 1, 2, 32, 64, &mut [0.0; 63]).is_err());
    for kv in KvType::ALL {
        let mut block = Block::new(kv, 32);
        k.kv_write(&[0.0; 32], &[0.0; 32], block.view_mut(), 63).unwrap();
        assert!(k.kv_write(&[0.0; 32], &[0.0; 31], block.view_mut(), 0).is_err());
        assert!(k.kv_write(&[0.0; 31], &[0.0; 31], block.view_mut(), 0).is_err());
        assert!(k.kv_write(&[0.0; 32], &[0.0; 32], block.view_mut(), 64).is_err());
        assert!(k.kv_write(&[], &[], Block::new(kv, 0).view_mut(), 0).is_err());
        block.scales.1.pop();
        assert_eq!(k.kv_write(&[0.0; 32], &[0.0; 32], block.view_mut(), 0).is_err(), kv == KvType::I8);
    }
}

#[test]
fn the_cache_rounds_to_nearest_and_saturates() {
    let k = [1e6, -1e6, f32::INFINITY, f32::NAN, 1.0 + 1.0 / 2048.0, 1.0 + 3.0 / 2048.0, 3e-8, -0.0];
    for kernels in kernels() {
        let (mut keys, mut values) = (vec![7u16; 512], vec![7u16; 512]);
        kernels.kv_write(&k, &k, KvBlockMut::F16 { k: &mut keys, v: &mut values }, 37).unwrap();
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

#[test]
fn bytes_are_nearest_steps_and_tokens_are_apart() {
    let mut random = Random(5);
    for head_dim in [1, 15, 16, 64, 80, 100] {
        let mut cache = Cache::new(KvType::I8, head_dim, 64);
        let tokens: Vec<_> = (0..64).map(|_| random.normals(head_dim, 3.0)).collect();
        // In any order, and on any level: a token is where it belongs, and nothing else has moved.
        for (i, position) in (0..64).map(|i| (i, i * 23 % 64)).collect::<Vec<_>>() {
            let before = (cache.blocks[0].bytes.clone(), cache.blocks[0].scales.clone());
            let (k, v) = (&tokens[position], &tokens[63 - position]);
            for kernels in kernels() {
                cache.write(kernels, position, k, v);
                let amax = |x: &[f32]| x.iter().fold(0.0f32, |m, v| m.max(v.abs()));
                let nearest = |x: f32, amax: f32| {
                    (f64::from(x * (127.0 / amax)).round_ties_even() * f64::from(amax / 127.0)) as f32
                };
                let got = cache.key(position);
                for (got, exact) in [(&got, k), (&cache.value(position), v)] {
                    let half_step = f64::from(amax(exact)) / 254.0;
                    // A few roundings of float32 on top.
                    let close = |(g, x): (&f64, &f32)| (g - f64::from(*x)).abs() <= half_step * (1.0 + 1e-4);
                    assert!(got.iter().zip(exact).all(close));
                }
                assert_eq!(got[0] as f32, nearest(k[0], amax(k)), "{}", kernels.level());
            }
            let after = &cache.blocks[0];
            let moved = |a: &[i8], b: &[i8]| a.iter().zip(b).filter(|(a, b)| a != b).count();
            assert!(moved(&before.0.0, &after.bytes.0) <= head_dim, "{i}");
            assert!(moved(&before.0.1, &after.bytes.1) <= head_dim, "{i}");
            let scales = before.1.0.iter().zip(&after.scales.0).filter(|(a, b)| a.to_bits() != b.to_bits());
            assert_eq!(scales.count(), 1, "{i}");
        }
    }
    for kernels in kernels() {
        let mut cache = Cache::new(KvType::I8, 16, 64);
        let mut v = [1.0; 16];
        v[3] = f32::INFINITY;
        cache.write(kernels, 9, &[0.0; 16], &v);
        assert!(cache.key(9).iter().all(|k| *k == 0.0));
        assert!(cache.value(9).iter().all(|v| v.is_nan()));
        assert!(cache.blocks[0].bytes.1[9 * 16..][..16].iter().all(|v| *v == 0));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn any_shape(seed: u64, head_dim in 1usize..140, heads in 1usize..9, tokens in 1usize..200, last in 1usize..20,
                 window in prop::option::of(1usize..90)) {
        for kv in KvType::ALL {
            check(&case(kv, seed, head_dim, heads, tokens, last.min(tokens), window));
        }
    }
}
