//! What the workers need to know of a step's rows: ids, positions, blocks, and how attention is divided.

use std::ops::Range;

use super::output::Selected;
use crate::kv::{KV_TOKENS, KvCache, SequenceId};
use crate::plan::{Phase, Plan};

/// Positions of a split of attention, which is computed as one.
pub(super) const SPLIT: usize = pocketlm_kernels::SPLIT_TOKENS;
/// Query rows that attention works on at once, if that many share a key-value head: enough to use a block of keys several times,
/// few enough to divide a prompt among workers.
const QUERY_ROWS: usize = 64;
/// Memory for partial attention that workers share.
const SHARED_BYTES: usize = 8 << 20;

/// Consecutive tokens of one sequence whose attention is one unit of work per key-value head, or several if `shared`.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub sequence: SequenceId,
    pub rows: Range<usize>,
    /// First units of shared partial results and of counters, if the splits are divided among workers.
    pub shared: Option<(usize, usize)>,
}

/// The rows of a step. Its vectors are reserved once.
pub(crate) struct Schedule {
    pub ids: Vec<u32>,
    pub positions: Vec<u32>,
    /// For each row the end of the positions that it sees.
    pub ends: Vec<u32>,
    /// For each row the block that its key and value go to.
    pub blocks: Vec<u32>,
    /// Rows that go to the same block.
    pub runs: Vec<Range<usize>>,
    pub entries: Vec<Entry>,
    /// Entry and, where it is shared, split: the units of work of each key-value head.
    pub tasks: Vec<(usize, Option<usize>)>,
    pub selected: Vec<Selected>,
    /// Tokens of an entry at most.
    entry_tokens: usize,
    /// Shared partial results and counters there are.
    pub limits: Limits,
}

/// Sizes of what workers share in attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Partial results of one token for all heads of a layer.
    pub units: usize,
    /// Floats of such a unit in the widest layer.
    pub unit_len: usize,
    /// Counters: one for each shared entry and key-value head.
    pub counters: usize,
    pub kv_heads: usize,
}

impl Limits {
    /// The sizes that suit a plan.
    pub fn new(plan: &Plan) -> Self {
        let layers = || attention_layers(plan);
        let unit_len = layers().map(|(heads, shape)| heads * (shape.head_dim + 2)).max().unwrap_or(1);
        let kv_heads = layers().map(|(_, shape)| shape.kv_heads).max().unwrap_or(1);
        let units = (SHARED_BYTES / 4 / unit_len).max(1);
        Self { units, unit_len, counters: units * kv_heads, kv_heads }
    }

    /// Bytes of all.
    pub fn bytes(self) -> u64 {
        (self.units * self.unit_len * 4 + self.counters * 4) as u64
    }
}

/// Heads and cache of each attention.
pub(super) fn attention_layers(plan: &Plan) -> impl Iterator<Item = (usize, crate::kv::CacheShape)> + '_ {
    plan.phases.iter().filter_map(|phase| match phase {
        Phase::Attention(part) => Some((part.heads, plan.caches[part.cache])),
        _ => None,
    })
}

/// Tokens of an entry: as many as make [`QUERY_ROWS`] rows in the layer where most heads share one.
pub(super) fn entry_tokens(plan: &Plan) -> usize {
    let group = attention_layers(plan).map(|(heads, shape)| heads / shape.kv_heads).max().unwrap_or(1);
    (QUERY_ROWS / group).max(1)
}

impl Schedule {
    /// An empty schedule with room for the steps of a plan.
    pub fn new(plan: &Plan) -> Self {
        let rows = plan.max_rows;
        let limits = Limits::new(plan);
        let numbers = || Vec::with_capacity(rows);
        Self {
            ids: numbers(),
            positions: numbers(),
            ends: numbers(),
            blocks: numbers(),
            runs: Vec::with_capacity(rows),
            entries: Vec::with_capacity(rows),
            tasks: Vec::with_capacity(rows + limits.units),
            selected: Vec::with_capacity(rows),
            entry_tokens: entry_tokens(plan),
            limits,
        }
    }

    /// Bytes of a schedule for that many rows, a generous count.
    pub fn bytes(rows: usize) -> Option<u64> {
        rows.checked_mul(256).map(|bytes| bytes as u64)
    }

    /// Forgets the last step.
    pub fn clear(&mut self) {
        self.ids.clear();
        self.positions.clear();
        self.ends.clear();
        self.blocks.clear();
        self.runs.clear();
        self.entries.clear();
        self.tasks.clear();
        self.selected.clear();
    }

    /// Adds the tokens of a sequence, which the cache already counts as present.
    pub fn add(&mut self, cache: &KvCache, sequence: SequenceId, ids: &[u32]) {
        let (table, length) = (cache.table(sequence), cache.length(sequence));
        let (first, start) = (self.ids.len(), length - ids.len());
        self.ids.extend_from_slice(ids);
        for position in start..length {
            self.positions.push(position as u32);
            self.ends.push(position as u32 + 1);
            self.blocks.push(table[position / KV_TOKENS]);
        }
        let mut at = start;
        while at < length {
            let end = ((at / KV_TOKENS + 1) * KV_TOKENS).min(length);
            self.runs.push(first + at - start..first + end - start);
            at = end;
        }
        let rows = first..first + ids.len();
        for begin in rows.clone().step_by(self.entry_tokens) {
            let rows = begin..(begin + self.entry_tokens).min(rows.end);
            self.entries.push(Entry { sequence, rows, shared: None });
        }
    }

    /// Divides attention for so many threads: entries with most to read first, and splits of an entry as units of their own where
    /// entries alone are too few to keep the threads busy.
    pub fn divide(&mut self, threads: usize) {
        let ends = &self.ends;
        let seen = |entry: &Entry| ends[entry.rows.end - 1] as usize * entry.rows.len();
        self.entries.sort_unstable_by_key(|entry| (std::cmp::Reverse(seen(entry)), entry.rows.start));
        let few = self.entries.len() * self.limits.kv_heads < 8 * threads;
        let (mut units, mut counters) = (0, 0);
        for (index, entry) in self.entries.iter_mut().enumerate() {
            let splits = (self.ends[entry.rows.end - 1] as usize).div_ceil(SPLIT);
            let needed = splits * entry.rows.len();
            if threads > 1 && few && splits > 1 && units + needed <= self.limits.units {
                entry.shared = Some((units, counters));
                units += needed;
                counters += self.limits.kv_heads;
                self.tasks.extend((0..splits).map(|split| (index, Some(split))));
            } else {
                self.tasks.push((index, None));
            }
        }
    }
}
