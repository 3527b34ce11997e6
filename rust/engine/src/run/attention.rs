//! Attention: each key-value head of some tokens of a sequence is a unit of work, or each split of it.

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};

use pocketlm_kernels::{Attention, KernelError, KvBlock};

use super::schedule::{Entry, Limits, SPLIT, attention_layers, entry_tokens};
use super::{Step, Worker};
use crate::kv::KV_TOKENS;
use crate::plan::{AttentionPart, Plan, View};

const BLOCKS: usize = SPLIT / KV_TOKENS;

/// Partial results that workers share, and for each shared entry and head the splits that are still to come.
pub(crate) struct SharedPartials {
    results: Vec<f32>,
    missing: Vec<AtomicU32>,
    limits: Limits,
}

impl SharedPartials {
    pub fn new(limits: Limits) -> Self {
        let missing = (0..limits.counters).map(|_| AtomicU32::new(0)).collect();
        Self { results: vec![0.0; limits.units * limits.unit_len], missing, limits }
    }

    /// After a step that failed half-way.
    pub fn reset(&mut self) {
        self.missing.fill_with(|| AtomicU32::new(0));
    }

    pub fn view(&mut self) -> Partials<'_> {
        let (base, len) = (self.results.as_mut_ptr(), self.results.len());
        Partials { base, len, missing: &self.missing, limits: self.limits, life: PhantomData }
    }
}

/// [`SharedPartials`] as the workers of a step see them.
pub(crate) struct Partials<'a> {
    base: *mut f32,
    len: usize,
    missing: &'a [AtomicU32],
    limits: Limits,
    life: PhantomData<&'a mut [f32]>,
}

// SAFETY: the vector is borrowed for as long as this lives, and only `Partials::slice` reaches into it, whose
// callers promise that no other thread's slice meets theirs. Counters are atomic.
unsafe impl Send for Partials<'_> {}
// SAFETY: as for `Send`: no method changes anything without that promise.
unsafe impl Sync for Partials<'_> {}

impl<'a> Partials<'a> {
    /// A range of the floats.
    ///
    /// # Safety
    /// Nobody, this thread included, reads or writes this range but through the result while that is used.
    unsafe fn slice(&self, start: usize, len: usize) -> &'a mut [f32] {
        assert!(start <= self.len && len <= self.len - start);
        // SAFETY: inside the vector, as just checked, which is borrowed for 'a; exclusive by the caller's
        // promise.
        unsafe { std::slice::from_raw_parts_mut(self.base.add(start), len) }
    }
}

/// A key-value head of an entry, or of one split of it.
#[derive(Clone, Copy)]
struct Unit<'a> {
    entry: &'a Entry,
    head: usize,
    split: Option<usize>,
}

/// Floats of a worker's partial results and of its merged rows, and rows of its window starts.
pub(super) fn worker_lens(plan: &Plan, tokens: usize) -> (usize, usize, usize) {
    let entry = entry_tokens(plan);
    let splits = tokens.div_ceil(SPLIT);
    let per_head = |(heads, shape): (usize, crate::kv::CacheShape)| (heads / shape.kv_heads, shape.head_dim);
    let layers = || attention_layers(plan).map(per_head);
    let partial = layers().map(|(group, dim)| splits * entry * group * (dim + 2)).max().unwrap_or(0);
    let merged = layers().map(|(group, dim)| entry * group * dim).max().unwrap_or(0);
    (partial, merged, entry)
}

/// The first position that a row sees whose range ends at `end`.
fn window_start(part: &AttentionPart, end: u32) -> u32 {
    part.window.map_or(0, |window| (end as usize).saturating_sub(window) as u32)
}

impl Step<'_, '_> {
    /// Works on attention until no units are left.
    pub(super) fn attention(&self, part: &AttentionPart, worker: &mut Worker) -> Result<(), KernelError> {
        let mut following = self.claim_unit(part);
        while let Some(unit) = following {
            // Where little is computed for what is read, the next unit is claimed ahead, so that its beginning is asked for in time.
            // Where much is, claiming late keeps the workers' ends together.
            following = if unit.entry.rows.len() == 1 { self.claim_unit(part) } else { None };
            let ahead = following.and_then(|next| self.first_block(part, next, next.split.unwrap_or(0)));
            match (unit.split, unit.entry.shared) {
                (Some(split), Some(shared)) => self.shared_split(part, unit, split, shared, ahead, worker)?,
                _ => self.whole_entry(part, unit, ahead, worker)?,
            }
            following = following.or_else(|| self.claim_unit(part));
        }
        Ok(())
    }

    fn claim_unit(&self, part: &AttentionPart) -> Option<Unit<'_>> {
        let kv_heads = self.kv.shape(part.cache).kv_heads;
        let unit = self.claim(self.schedule.tasks.len() * kv_heads)?;
        let (index, split) = self.schedule.tasks[unit / kv_heads];
        Some(Unit { entry: &self.schedule.entries[index], head: unit % kv_heads, split })
    }

    /// All splits of an entry, one after the other.
    fn whole_entry(
        &self,
        part: &AttentionPart,
        unit: Unit<'_>,
        ahead: Option<KvBlock<'_>>,
        worker: &mut Worker,
    ) -> Result<(), KernelError> {
        let len = self.partial_len(part, unit.entry);
        let Worker { partial, merged, starts, .. } = worker;
        let (mut used, splits) = (0, self.splits(unit.entry));
        for split in 0..splits {
            let next = if split + 1 < splits { self.first_block(part, unit, split + 1) } else { ahead };
            if self.split(part, unit, split, next, starts, &mut partial[used..used + len])? {
                used += len;
            }
        }
        self.merge(part, unit, &partial[..used], merged)
    }

    /// One split of an entry; who finds that it was the last merges them all, in order, so that it does not matter who.
    fn shared_split(
        &self,
        part: &AttentionPart,
        unit: Unit<'_>,
        split: usize,
        (units, counter): (usize, usize),
        ahead: Option<KvBlock<'_>>,
        worker: &mut Worker,
    ) -> Result<(), KernelError> {
        let Unit { entry, head, .. } = unit;
        let len = self.partial_len(part, entry);
        let splits = self.splits(entry);
        let base = units * self.partials.limits.unit_len + head * splits * len;
        // SAFETY: this split of this entry and head is this worker's unit, and `divide` gave the entry as
        // many units as hold the splits of all heads. It is read only after the counter says that it is
        // written, and `own` is not used after that.
        let own = unsafe { self.partials.slice(base + split * len, len) };
        let Worker { merged, starts, .. } = worker;
        if !self.split(part, unit, split, ahead, starts, own)? {
            // What sees nothing is passed over by the merge.
            for row in own.chunks_exact_mut(self.kv.shape(part.cache).head_dim + 2) {
                row.fill(0.0);
                row[0] = f32::NEG_INFINITY;
            }
        }
        // Counts up from zero and back to it, so that the next layer finds it as this one did.
        let missing = &self.partials.missing[counter + head];
        if missing.fetch_add(1, Ordering::AcqRel) as usize + 1 == splits {
            missing.store(0, Ordering::Relaxed);
            // SAFETY: all splits are written: the counter says so, and each of its changes comes after what
            // its worker wrote. One worker alone finds it full and comes here.
            let all = unsafe { self.partials.slice(base, splits * len) };
            self.merge(part, unit, all, merged)?;
        }
        Ok(())
    }

    fn splits(&self, entry: &Entry) -> usize {
        (self.schedule.ends[entry.rows.end - 1] as usize).div_ceil(SPLIT)
    }

    /// Floats of the partial results of one split of an entry for one key-value head.
    fn partial_len(&self, part: &AttentionPart, entry: &Entry) -> usize {
        let shape = self.kv.shape(part.cache);
        entry.rows.len() * (part.heads / shape.kv_heads) * Attention::partial_len(shape.head_dim)
    }

    /// The query heads that share a key-value head.
    fn group(&self, part: &AttentionPart, view: View, head: usize) -> View {
        let shape = self.kv.shape(part.cache);
        let width = part.heads / shape.kv_heads * shape.head_dim;
        View { start: view.start + head * width, width, ..view }
    }

    /// The positions of a split that any row of an entry sees, from the beginning of a block on; none if no row sees any.
    fn seen(&self, part: &AttentionPart, entry: &Entry, split: usize) -> Option<Range<usize>> {
        // Rows are in order of their positions.
        let ends = &self.schedule.ends[entry.rows.clone()];
        let (low, high) = (window_start(part, ends[0]) as usize, ends[ends.len() - 1] as usize);
        let first = (split * SPLIT).max(low / KV_TOKENS * KV_TOKENS);
        let end = ((split + 1) * SPLIT).min(high);
        (first < end).then_some(first..end)
    }

    /// The block that the work on a split begins with.
    fn first_block(&self, part: &AttentionPart, unit: Unit<'_>, split: usize) -> Option<KvBlock<'_>> {
        let first = self.seen(part, unit.entry, split)?.start;
        let index = self.cache.table(unit.entry.sequence)[first / KV_TOKENS];
        // SAFETY: this phase writes nothing into the cache, and keys and values of this step were written
        // before the barrier in front of it.
        Some(unsafe { self.kv.read(index, part.cache, unit.head) })
    }

    /// Partial attention over one split; false if no row sees any of it. `ahead` is what will be read after it.
    fn split(
        &self,
        part: &AttentionPart,
        Unit { entry, head, .. }: Unit<'_>,
        split: usize,
        ahead: Option<KvBlock<'_>>,
        starts: &mut [u32],
        out: &mut [f32],
    ) -> Result<bool, KernelError> {
        let shape = self.kv.shape(part.cache);
        let ends = &self.schedule.ends[entry.rows.clone()];
        let starts = &mut starts[..ends.len()];
        for (start, &end) in starts.iter_mut().zip(ends) {
            *start = window_start(part, end);
        }
        let Some(seen) = self.seen(part, entry, split) else { return Ok(false) };
        let first = seen.start;
        let table = &self.cache.table(entry.sequence)[first / KV_TOKENS..seen.end.div_ceil(KV_TOKENS)];
        let mut blocks = [KvBlock::EMPTY; BLOCKS];
        for (block, &index) in blocks.iter_mut().zip(table) {
            // SAFETY: keys and values of this step were written before the barrier in front of this phase,
            // which writes none.
            *block = unsafe { self.kv.read(index, part.cache, head) };
        }
        let q = self.group(part, part.q, head);
        // SAFETY: queries were written in an earlier phase, and this one writes only its result, in a buffer
        // of its own.
        let (q, token_stride) = unsafe { self.arena.rows(q, entry.rows.start, entry.rows.len()) };
        let attention = Attention {
            head_dim: shape.head_dim,
            heads: part.heads / shape.kv_heads,
            q,
            token_stride,
            starts,
            ends,
            softcap: part.softcap,
            first,
            blocks: &blocks[..table.len()],
            ahead,
        };
        self.kernels.attention_split(&attention, out)?;
        Ok(true)
    }

    /// Merges splits and puts the rows where they belong.
    fn merge(
        &self,
        part: &AttentionPart,
        Unit { entry, head, .. }: Unit<'_>,
        partials: &[f32],
        merged: &mut [f32],
    ) -> Result<(), KernelError> {
        let shape = self.kv.shape(part.cache);
        let to = self.group(part, part.to, head);
        let tokens = entry.rows.len();
        let merged = &mut merged[..tokens * to.width];
        let heads = part.heads / shape.kv_heads;
        self.kernels.attention_merge(partials, tokens, heads, shape.head_dim, to.width, merged)?;
        for (row, values) in entry.rows.clone().zip(merged.chunks_exact(to.width)) {
            // SAFETY: one worker alone merges these rows of this head: whose unit they are, or who finished
            // the last of their splits. The buffer is read behind the next barrier.
            unsafe { self.arena.row_mut(to, row) }.copy_from_slice(values);
        }
        Ok(())
    }
}
