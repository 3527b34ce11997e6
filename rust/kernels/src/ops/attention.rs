//! Attention of query rows over one split of the cache (at most 512 tokens of one key-value head), by online softmax
//! (arXiv 1805.02867) block by block, as in flash attention (arXiv 2205.14135).
//!
//! Everything that decides a bit of a row's result depends on that row alone: the absolute borders of blocks and splits and the
//! row's own range of visible tokens. Rows are worked on in tiles for speed only, so prefill equals decode, in any chunks.

use super::attention_tiles::{Scores, accumulate, scores};
use super::kv_block::KvBlock;
use super::kv_numbers::{Halves, Numbers, Scaled};
use super::math;
use super::{KV_TOKENS, SPLIT_TOKENS};
use crate::simd::{LANES, Simd};

/// Query rows of one key-value head, and the blocks of one split.
///
/// Row `t * heads + h` is query head `h` of the group at token `t`; its channels are
/// `q[t * token_stride + h * head_dim ..][..head_dim]`, already multiplied by the softmax scale.
#[derive(Debug, Clone, Copy)]
pub struct Attention<'a> {
    /// Channels of a head.
    pub head_dim: usize,
    /// Query heads that share the key-value head.
    pub heads: usize,
    /// Queries.
    pub q: &'a [f32],
    /// Elements from a token's queries to the next token's.
    pub token_stride: usize,
    /// For each token the first position that it sees.
    pub starts: &'a [u32],
    /// For each token the end of the positions that it sees (its own position + 1, for causal attention).
    pub ends: &'a [u32],
    /// Scores become `cap * tanh(score / cap)`.
    pub softcap: Option<f32>,
    /// Absolute position of the first token of `blocks`: a multiple of 64.
    pub first: usize,
    /// Consecutive blocks of one type, all within one split (positions 512 i to 512 i + 511).
    pub blocks: &'a [KvBlock<'a>],
    /// The block that will be read after the last of `blocks`, if known: it is asked for while the last is worked on. It changes
    /// nothing but time.
    pub ahead: Option<KvBlock<'a>>,
}

impl Attention<'_> {
    /// Number of query rows.
    pub fn rows(&self) -> usize {
        self.ends.len() * self.heads
    }

    /// Number of floats of the partial result of one row: maximum, sum, and `head_dim` accumulators.
    pub const fn partial_len(head_dim: usize) -> usize {
        head_dim + 2
    }

    #[inline(always)]
    fn query(&self, row: usize) -> &[f32] {
        let at = row / self.heads * self.token_stride + row % self.heads * self.head_dim;
        &self.q[at..at + self.head_dim]
    }

    /// The tokens of the block at position `base` that a row sees, as a range within the block.
    #[inline(always)]
    fn visible(&self, row: usize, base: usize) -> (usize, usize) {
        let token = row / self.heads;
        let start = (self.starts[token] as usize).max(base) - base;
        let end = (self.ends[token] as usize).clamp(base, base + KV_TOKENS) - base;
        (start.min(KV_TOKENS), end)
    }
}

/// Scores to probabilities relative to the new maximum; updates maximum, sum and the scale of the accumulators. `acc` is the row's
/// partial result. Groups without a visible token are left alone. The sum is of the probabilities; what is left in `p` is what the
/// numbers of the values are to be multiplied with.
// Counted loops: iterators with two adapters become calls, and a slice of the groups made a tiny step 2.5 % longer.
#[allow(clippy::needless_range_loop)]
#[inline(always)]
fn softmax_block<'a, S: Simd, B: Numbers<'a>>(
    s: S,
    block: B,
    p: &mut [f32; KV_TOKENS],
    (from, to): (usize, usize),
    softcap: Option<f32>,
    acc: &mut [f32],
) {
    let visible: u64 = (u64::MAX >> (KV_TOKENS - (to - from))) << from;
    let (groups, _) = p.as_chunks_mut::<LANES>();
    let (first, last) = (from / LANES, to.div_ceil(LANES));
    let lowest = s.splat(f32::NEG_INFINITY);
    let mut peak = lowest;
    for g in first..last {
        let group = &mut groups[g];
        let mut v = s.load(group);
        if let Some(cap) = softcap {
            let cap = s.splat(cap);
            v = s.mul(cap, math::tanh(s, s.div(v, cap)));
        }
        v = s.select(s.mask((visible >> (g * LANES)) as u16), v, lowest);
        peak = s.max(v, peak);
        s.store(group, v);
    }
    let peak = s.hmax(peak);
    let (state, channels) = acc.split_at_mut(2);
    let old = state[0];
    let max = if old > peak { old } else { peak };
    if old == f32::NEG_INFINITY {
        state[1] = 0.0;
        channels.fill(0.0);
    } else if max != old {
        let shrink = math::exp_one(s, old - max);
        state[1] *= shrink;
        let factor = s.splat(shrink);
        super::elementwise::map_in_place!(s, channels, v => s.mul(v, factor));
    }
    state[0] = max;
    let m = s.splat(max);
    let mut sum = s.zero();
    for g in first..last {
        let group = &mut groups[g];
        let e = math::exp(s, s.sub(s.load(group), m));
        s.store(group, block.scale_weights(s, g, e));
        sum = s.add(sum, e);
    }
    state[1] += s.hsum(sum);
}

/// `R` rows from row `row` on. `partial` holds their results.
#[inline(always)]
fn tile<'a, S: Simd, B: Numbers<'a>, const R: usize>(
    s: S,
    a: &Attention<'a>,
    row: usize,
    partial: &mut [f32],
) {
    let stride = a.head_dim + 2;
    for acc in partial.chunks_exact_mut(stride) {
        acc.fill(0.0);
        acc[0] = f32::NEG_INFINITY;
    }
    let mut q: [&[f32]; R] = [&[]; R];
    for (r, q) in q.iter_mut().enumerate() {
        *q = a.query(row + r);
    }
    let q = B::queries(s, q);
    let mut p: Scores<R> = [[0.0; KV_TOKENS]; R];
    for (b, block) in a.blocks.iter().enumerate() {
        let Some(block) = B::of(block) else { continue };
        // While this block is computed, the next one is fetched from memory: in the same order, a block ahead.
        let next = a.blocks.get(b + 1).or(a.ahead.as_ref()).and_then(B::of).unwrap_or(block).addresses();
        let base = a.first + b * KV_TOKENS;
        let mut ranges = [(0, 0); R];
        // The union of the rows' ranges, and what all of them see.
        let (mut low, mut high, mut start, mut end) = (KV_TOKENS, 0, 0, KV_TOKENS);
        for (r, range) in ranges.iter_mut().enumerate() {
            *range = a.visible(row + r, base);
            (start, end) = (start.max(range.0), end.min(range.1));
            if range.0 < range.1 {
                (low, high) = (low.min(range.0), high.max(range.1));
            }
        }
        if low >= high {
            continue;
        }
        let (mut group, last) = (low / LANES, high.div_ceil(LANES));
        if S::REGISTERS >= 32 || (S::REGISTERS >= 8 && R == 1) {
            if last - group == 4 {
                scores::<S, B, R, 4>(s, &q, block, next.0, a.head_dim, 0, &mut p);
                group = 4;
            }
        } else if R == 2 {
            while group + 2 <= last {
                scores::<S, B, R, 2>(s, &q, block, next.0, a.head_dim, group, &mut p);
                group += 2;
            }
        }
        while group < last {
            scores::<S, B, R, 1>(s, &q, block, next.0, a.head_dim, group, &mut p);
            group += 1;
        }
        for (r, acc) in partial.chunks_exact_mut(stride).enumerate() {
            if ranges[r].0 < ranges[r].1 {
                softmax_block(s, block, &mut p[r], ranges[r], a.softcap, acc);
            }
        }
        // Tokens in order for each row: those before the common range, the common range, those after it.
        let common = if start < end { (start, end) } else { (0, 0) };
        if common.1 > 0 && ranges.iter().all(|range| *range == common) {
            accumulate::<S, B, R>(s, &p, block, next.1, a.head_dim, common, partial);
            continue;
        }
        for (r, acc) in partial.chunks_exact_mut(stride).enumerate() {
            let range = if common.1 > 0 { (ranges[r].0, common.0) } else { ranges[r] };
            accumulate::<S, B, 1>(s, std::array::from_ref(&p[r]), block, next.1, a.head_dim, range, acc);
        }
        if common.1 > 0 {
            accumulate::<S, B, R>(s, &p, block, next.1, a.head_dim, common, partial);
            for (r, acc) in partial.chunks_exact_mut(stride).enumerate() {
                accumulate::<S, B, 1>(
                    s,
                    std::array::from_ref(&p[r]),
                    block,
                    next.1,
                    a.head_dim,
                    (common.1, ranges[r].1),
                    acc,
                );
            }
        }
    }
}

#[inline(always)]
fn split<'a, S: Simd, B: Numbers<'a>>(s: S, a: &Attention<'a>, partial: &mut [f32]) {
    let stride = a.head_dim + 2;
    let rows = a.rows();
    let mut row = 0;
    while row < rows {
        let left = rows - row;
        let at = row * stride;
        // Eight rows are better as four and four than as six and two.
        row += if S::REGISTERS >= 32 && left >= 6 && left != 8 {
            tile::<S, B, 6>(s, a, row, &mut partial[at..at + 6 * stride]);
            6
        } else if S::REGISTERS >= 8 && left >= 4 {
            tile::<S, B, 4>(s, a, row, &mut partial[at..at + 4 * stride]);
            4
        } else if S::REGISTERS >= 8 && left == 3 {
            tile::<S, B, 3>(s, a, row, &mut partial[at..at + 3 * stride]);
            3
        } else if S::REGISTERS >= 8 && left >= 2 {
            tile::<S, B, 2>(s, a, row, &mut partial[at..at + 2 * stride]);
            2
        } else {
            tile::<S, B, 1>(s, a, row, &mut partial[at..at + stride]);
            1
        };
    }
}

instantiate! {
    AttentionSplit, "f16", "rows" => f16_rows = split::<_, Halves<'_>>, (a: &Attention<'_>, partial: &mut [f32]);
    AttentionSplit, "i8", "rows" => i8_rows = split::<_, Scaled<'_>>, (a: &Attention<'_>, partial: &mut [f32]);
}

const _: () = assert!(SPLIT_TOKENS.is_multiple_of(KV_TOKENS));
