//! The most likely tokens, without sorting the vocabulary.

use crate::ops::MAXIMA_BLOCK;

/// Tokens in order of rank: larger logits first, lower ids first among equal ones.
#[derive(Debug, Clone)]
pub(super) struct Ranked {
    keys: Vec<u64>,
    ids: Vec<u32>,
}

impl Ranked {
    pub(super) fn new() -> Self {
        Self { keys: Vec::new(), ids: Vec::new() }
    }

    pub(super) fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Ids and logits.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, f32)> {
        self.keys.iter().map(|&key| (key as u32, logit(key)))
    }
}

/// An integer that sorts as the rank does: the logit's order, reversed, above the id.
fn key(x: f32, id: usize) -> u64 {
    // -0 and +0 are equal logits.
    let bits = (x + 0.0).to_bits();
    let ascending = if bits >> 31 == 1 { !bits } else { bits | 1 << 31 };
    u64::from(!ascending) << 32 | id as u64
}

fn logit(key: u64) -> f32 {
    let ascending = !((key >> 32) as u32);
    f32::from_bits(if ascending >> 31 == 1 { ascending & !(1 << 31) } else { !ascending })
}

/// Ranks the `n` most likely tokens (all, if there are fewer). `maxima` is the table of maxima of the logits, none of which is NaN.
///
/// The n-th largest maximum is a lower bound of the n-th largest logit, for each of n blocks holds one at least as large; so only
/// blocks that reach it are looked at.
pub(super) fn top(logits: &[f32], maxima: &[f32], n: usize, order: &mut Vec<f32>, ranked: &mut Ranked) {
    ranked.keys.clear();
    ranked.ids.clear();
    let n = n.min(logits.len());
    if n == 0 {
        return;
    }
    let bound = if n < maxima.len() {
        order.clear();
        order.extend_from_slice(maxima);
        *order.select_nth_unstable_by(n - 1, |a, b| b.total_cmp(a)).1
    } else {
        f32::NEG_INFINITY
    };
    for (block, (chunk, &max)) in logits.chunks(MAXIMA_BLOCK).zip(maxima).enumerate() {
        if max >= bound {
            let found = chunk.iter().enumerate().filter(|&(_, &x)| x >= bound);
            ranked.keys.extend(found.map(|(i, &x)| key(x, block * MAXIMA_BLOCK + i)));
        }
    }
    if n < ranked.keys.len() {
        ranked.keys.select_nth_unstable(n - 1);
        ranked.keys.truncate(n);
    }
    ranked.keys.sort_unstable();
    ranked.ids.extend(ranked.keys.iter().map(|&key| key as u32));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_sort_by_rank_and_keep_the_logit() {
        let x = [f32::INFINITY, 3.5, 1e-45, 0.0, -0.0, -1e-45, -2.0, f32::NEG_INFINITY];
        for (i, pair) in x.windows(2).enumerate() {
            // +0 and -0 are in order of their ids.
            assert!(key(pair[0], i) < key(pair[1], i + 1), "{pair:?}");
            assert_eq!(logit(key(pair[0], i)), pair[0]);
        }
        assert!(key(-0.0, 1) < key(0.0, 2));
    }
}
