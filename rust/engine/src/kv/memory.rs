//! The memory of the blocks: one map, and where a layer's keys and values lie in it.

use std::marker::PhantomData;
use std::ops::Range;

use memmap2::{MmapMut, MmapOptions};

use super::KV_TOKENS;
use crate::error::EngineError;

/// Tokens of a group: keys are transposed in groups of as many tokens as a vector has lanes.
const GROUP: usize = 16;

/// One layer's cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheShape {
    /// Key and value heads.
    pub kv_heads: usize,
    /// Channels of a head.
    pub head_dim: usize,
}

impl CacheShape {
    /// f16 values of the keys of one head in a block; as many of its values.
    fn part(self) -> usize {
        self.head_dim * KV_TOKENS
    }

    fn block_len(self) -> Option<usize> {
        self.kv_heads.checked_mul(self.head_dim)?.checked_mul(2 * KV_TOKENS)
    }
}

/// All blocks. Block b holds, layer by layer and head by head, keys `[64 / 16][head_dim][16]`, then values
/// `[64][head_dim]`, as bits of f16.
pub(super) struct Blocks {
    map: MmapMut,
    count: usize,
    /// f16 values of a block.
    block_len: usize,
    /// Shape and first value of each layer inside a block.
    layers: Vec<(CacheShape, usize)>,
}

impl Blocks {
    /// Bytes of `count` blocks with their bookkeeping.
    pub fn bytes(layers: &[CacheShape], count: usize) -> Option<u64> {
        let block = layers.iter().try_fold(0usize, |sum, layer| sum.checked_add(layer.block_len()?))?;
        // Bookkeeping: holders, free list.
        let bytes = block.checked_mul(2)?.checked_add(8)?.checked_mul(count)?;
        (u32::try_from(count).is_ok() && isize::try_from(bytes).is_ok()).then_some(bytes as u64)
    }

    pub fn new(shapes: &[CacheShape], count: usize) -> Result<Self, EngineError> {
        let needed = Self::bytes(shapes, count);
        let memory = |needed| EngineError::Memory { what: "the KV cache".into(), needed, available: 0 };
        let needed = needed.ok_or_else(|| memory(u64::MAX))?;
        let mut block_len = 0;
        let mut layers = Vec::with_capacity(shapes.len());
        for &shape in shapes {
            layers.push((shape, block_len));
            // Cannot overflow: `bytes` has just computed it.
            block_len += shape.block_len().unwrap_or(0);
        }
        let len = (block_len * count * 2).max(1);
        let map = MmapOptions::new().len(len).no_reserve_swap().map_anon().map_err(|_| memory(needed))?;
        Ok(Self { map, count, block_len, layers })
    }

    /// Shared access for the workers of a step.
    pub fn view(&self) -> KvView<'_> {
        KvView {
            base: self.map.as_ptr().cast::<u16>().cast_mut(),
            block_len: self.block_len,
            count: self.count,
            layers: &self.layers,
            life: PhantomData,
        }
    }

    /// Copies a block.
    pub fn copy(&mut self, from: u32, to: u32) {
        let (len, from, to) = (self.block_len * 2, from as usize, to as usize);
        assert!(from < self.count && to < self.count);
        self.map.copy_within(from * len..(from + 1) * len, to * len);
    }

    /// Bytes of a block.
    pub fn block_bytes(&self) -> usize {
        2 * self.block_len
    }

    /// Appends the first `slots` slots of a block to `bytes`, little-endian, as a whole block whose other slots are zero.
    pub fn export(&self, block: u32, slots: usize, bytes: &mut Vec<u8>) {
        let start = block as usize * self.block_bytes();
        let words = self.map[start..start + self.block_bytes()].chunks_exact(2);
        let mut words: Vec<u16> = words.map(|word| u16::from_ne_bytes([word[0], word[1]])).collect();
        if slots < KV_TOKENS {
            clear_slots(&self.layers, &mut words, slots..KV_TOKENS);
        }
        bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    }

    /// Fills a block from what `export` gave.
    pub fn import(&mut self, block: u32, bytes: &[u8]) {
        let start = block as usize * self.block_bytes();
        let len = self.block_bytes();
        for (word, bytes) in self.map[start..start + len].chunks_exact_mut(2).zip(bytes.chunks_exact(2)) {
            word.copy_from_slice(&u16::from_le_bytes([bytes[0], bytes[1]]).to_ne_bytes());
        }
    }
}

/// Zeroes some slots of a block.
fn clear_slots(layers: &[(CacheShape, usize)], block: &mut [u16], slots: Range<usize>) {
    for &(shape, start) in layers {
        let heads = block[start..][..shape.kv_heads * 2 * shape.part()].chunks_exact_mut(2 * shape.part());
        for head in heads {
            let (keys, values) = head.split_at_mut(shape.part());
            for (group, lines) in keys.chunks_exact_mut(GROUP * shape.head_dim).enumerate() {
                let within = |slot: usize| slot.saturating_sub(group * GROUP).min(GROUP);
                let lanes = within(slots.start)..within(slots.end);
                if !lanes.is_empty() {
                    lines.chunks_exact_mut(GROUP).for_each(|line| line[lanes.clone()].fill(0));
                }
            }
            values[slots.start * shape.head_dim..slots.end * shape.head_dim].fill(0);
        }
    }
}

/// The blocks as a step sees them: workers read all, and each writes slots that no other touches.
#[derive(Clone, Copy)]
pub struct KvView<'a> {
    base: *mut u16,
    block_len: usize,
    count: usize,
    layers: &'a [(CacheShape, usize)],
    life: PhantomData<&'a MmapMut>,
}

// SAFETY: a view is a pointer into plain memory; its unsafe methods leave the exclusion of writers to their callers.
unsafe impl Send for KvView<'_> {}
// SAFETY: as above.
unsafe impl Sync for KvView<'_> {}

impl<'a> KvView<'a> {
    /// Heads and size of a layer's cache.
    pub fn shape(&self, layer: usize) -> CacheShape {
        self.layers[layer].0
    }

    fn head(&self, block: u32, layer: usize, head: usize) -> (Range<usize>, Range<usize>) {
        let (shape, start) = self.layers[layer];
        assert!((block as usize) < self.count && head < shape.kv_heads);
        let start = block as usize * self.block_len + start + head * 2 * shape.part();
        (start..start + shape.part(), start + shape.part()..start + 2 * shape.part())
    }

    /// Keys and values of one head in a block.
    ///
    /// # Safety
    /// No thread writes this head of this block while the result is used.
    pub unsafe fn read(&self, block: u32, layer: usize, head: usize) -> (&'a [u16], &'a [u16]) {
        let (keys, values) = self.head(block, layer, head);
        // SAFETY: both ranges lie inside the map, which lives for 'a; that nobody writes them is the caller's promise.
        unsafe {
            (
                std::slice::from_raw_parts(self.base.add(keys.start), keys.len()),
                std::slice::from_raw_parts(self.base.add(values.start), values.len()),
            )
        }
    }

    /// Keys and values of one head in a block, to be written.
    ///
    /// # Safety
    /// No other thread reads or writes this head of this block while the result is used.
    pub unsafe fn write(&self, block: u32, layer: usize, head: usize) -> (&'a mut [u16], &'a mut [u16]) {
        let (keys, values) = self.head(block, layer, head);
        // SAFETY: both ranges lie inside the map, do not meet, and are this thread's by the caller's promise.
        unsafe {
            (
                std::slice::from_raw_parts_mut(self.base.add(keys.start), keys.len()),
                std::slice::from_raw_parts_mut(self.base.add(values.start), values.len()),
            )
        }
    }
}
