//! The memory of the blocks: one map, and where a layer's keys and values lie in it.

use std::marker::PhantomData;
use std::ops::Range;

use memmap2::{MmapMut, MmapOptions};
use pocketlm_kernels::{KvBlock, KvBlockMut, KvType};

use super::KV_TOKENS;
use crate::error::EngineError;

/// Bytes of a scale.
const SCALE: usize = size_of::<f32>();

/// Bytes of a number, and of the scale of a token's key or value.
const fn sizes(kv: KvType) -> (usize, usize) {
    match kv {
        KvType::F16 => (2, 0),
        KvType::I8 => (1, SCALE),
    }
}

/// One layer's cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheShape {
    /// Key and value heads.
    pub kv_heads: usize,
    /// Channels of a head.
    pub head_dim: usize,
}

impl CacheShape {
    /// Numbers of the keys of one head in a block; as many of its values.
    fn part(self) -> usize {
        self.head_dim * KV_TOKENS
    }

    /// Bytes of a block's keys and values: a multiple of 64, so that everything in it is aligned.
    fn block_len(self, kv: KvType) -> Option<usize> {
        let (number, scale) = sizes(kv);
        let token = self.head_dim.checked_mul(number)?.checked_add(scale)?;
        self.kv_heads.checked_mul(token)?.checked_mul(2 * KV_TOKENS)
    }
}

/// All blocks. Block b holds, layer by layer and head by head, keys, then values (see [`KvBlock`]); for
/// int8 then the scales of the 64 keys, and of the 64 values.
pub(super) struct Blocks {
    map: MmapMut,
    count: usize,
    /// Bytes of a block.
    block_len: usize,
    kv: KvType,
    /// Shape and first byte of each layer inside a block.
    layers: Vec<(CacheShape, usize)>,
}

impl Blocks {
    /// Bytes of `count` blocks with their bookkeeping.
    pub fn bytes(layers: &[CacheShape], kv: KvType, count: usize) -> Option<u64> {
        let block = layers.iter().try_fold(0usize, |sum, layer| sum.checked_add(layer.block_len(kv)?))?;
        // Bookkeeping: holders, free list.
        let bytes = block.checked_add(8)?.checked_mul(count)?;
        (u32::try_from(count).is_ok() && isize::try_from(bytes).is_ok()).then_some(bytes as u64)
    }

    pub fn new(shapes: &[CacheShape], kv: KvType, count: usize) -> Result<Self, EngineError> {
        let needed = Self::bytes(shapes, kv, count);
        let memory = |needed| EngineError::Memory { what: "the KV cache".into(), needed, available: 0 };
        let needed = needed.ok_or_else(|| memory(u64::MAX))?;
        let mut block_len = 0;
        let mut layers = Vec::with_capacity(shapes.len());
        for &shape in shapes {
            layers.push((shape, block_len));
            // Cannot overflow: `bytes` has just computed it.
            block_len += shape.block_len(kv).unwrap_or(0);
        }
        let len = (block_len * count).max(1);
        let map = MmapOptions::new().len(len).no_reserve_swap().map_anon().map_err(|_| memory(needed))?;
        // Attention reads a few pages of each block and goes on to the next, far away: with small pages it waits for the
        // page tables more than for the data. Where the system refuses, everything works the same.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        Ok(Self { map, count, block_len, kv, layers })
    }

    /// Shared access for the workers of a step.
    pub fn view(&self) -> KvView<'_> {
        KvView {
            base: self.map.as_ptr().cast_mut(),
            block_len: self.block_len,
            kv: self.kv,
            count: self.count,
            layers: &self.layers,
            life: PhantomData,
        }
    }

    /// Copies a block.
    pub fn copy(&mut self, from: u32, to: u32) {
        let (len, from, to) = (self.block_len, from as usize, to as usize);
        assert!(from < self.count && to < self.count);
        self.map.copy_within(from * len..(from + 1) * len, to * len);
    }

    /// Bytes of a block.
    pub fn block_bytes(&self) -> usize {
        self.block_len
    }

    /// Appends the first `slots` slots of a block to `bytes`, little-endian, as a whole block whose other slots are zero.
    pub fn export(&self, block: u32, slots: usize, bytes: &mut Vec<u8>) {
        let (start, at) = (block as usize * self.block_len, bytes.len());
        bytes.extend_from_slice(&self.map[start..start + self.block_len]);
        for_heads(&self.layers, self.kv, &mut bytes[at..], |shape, head| {
            clear_slots(shape, self.kv, head, slots..KV_TOKENS);
            little_endian(shape, self.kv, head);
        });
    }

    /// Fills a block from what `export` gave.
    pub fn import(&mut self, block: u32, bytes: &[u8]) {
        let start = block as usize * self.block_len;
        let block = &mut self.map[start..start + self.block_len];
        block.copy_from_slice(bytes);
        for_heads(&self.layers, self.kv, block, |shape, head| little_endian(shape, self.kv, head));
    }
}

/// Calls `f` with the bytes of every head of a block.
fn for_heads(
    layers: &[(CacheShape, usize)],
    kv: KvType,
    block: &mut [u8],
    mut f: impl FnMut(CacheShape, &mut [u8]),
) {
    for &(shape, start) in layers {
        // Does not overflow: the block exists.
        let len = shape.block_len(kv).unwrap_or(0);
        block[start..start + len].chunks_exact_mut(len / shape.kv_heads).for_each(|head| f(shape, head));
    }
}

/// Zeroes some slots of a head.
fn clear_slots(shape: CacheShape, kv: KvType, head: &mut [u8], slots: Range<usize>) {
    let (number, scale) = sizes(kv);
    let (keys, rest) = head.split_at_mut(number * shape.part());
    let (values, scales) = rest.split_at_mut(number * shape.part());
    for slot in slots.clone() {
        for channel in 0..shape.head_dim {
            let at = kv.key_at(shape.head_dim, slot, channel);
            keys[at * number..(at + 1) * number].fill(0);
        }
    }
    let token = number * shape.head_dim;
    values[slots.start * token..slots.end * token].fill(0);
    for scales in scales.chunks_exact_mut(KV_TOKENS * SCALE) {
        scales[slots.start * scale..slots.end * scale].fill(0);
    }
}

/// Turns a head's numbers from this machine's order of bytes to little-endian, or back.
fn little_endian(shape: CacheShape, kv: KvType, head: &mut [u8]) {
    if cfg!(target_endian = "big") {
        let (number, _) = sizes(kv);
        let (numbers, scales) = head.split_at_mut(2 * number * shape.part());
        numbers.chunks_exact_mut(number).for_each(<[u8]>::reverse);
        scales.chunks_exact_mut(SCALE).for_each(<[u8]>::reverse);
    }
}

/// The blocks as a step sees them: workers read all, and each writes slots that no other touches.
#[derive(Clone, Copy)]
pub struct KvView<'a> {
    base: *mut u8,
    block_len: usize,
    kv: KvType,
    count: usize,
    layers: &'a [(CacheShape, usize)],
    life: PhantomData<&'a MmapMut>,
}

// SAFETY: the map belongs to no thread, and a view reads and writes nothing by itself: who makes a reference
// by one of its unsafe methods promises that no other thread's gets in its way.
unsafe impl Send for KvView<'_> {}
// SAFETY: as for `Send`: a shared view can do no more than a sent one, since views are copied freely.
unsafe impl Sync for KvView<'_> {}

impl<'a> KvView<'a> {
    /// Heads and size of a layer's cache.
    pub fn shape(&self, layer: usize) -> CacheShape {
        self.layers[layer].0
    }

    /// Where a head's keys begin, and the numbers of its keys and of its values.
    fn head(&self, block: u32, layer: usize, head: usize) -> (*mut u8, usize) {
        let (shape, start) = self.layers[layer];
        assert!((block as usize) < self.count && head < shape.kv_heads);
        // Neither overflows: all blocks fit into the map.
        let len = shape.block_len(self.kv).unwrap_or(0) / shape.kv_heads;
        let at = block as usize * self.block_len + start + head * len;
        // SAFETY: block and head exist, as just checked, so that the head's bytes lie inside the map of
        // `count` blocks.
        (unsafe { self.base.add(at) }, shape.part())
    }

    /// Keys and values of one head in a block.
    ///
    /// # Safety
    /// Nobody, this thread included, writes this head of this block while the result is used.
    pub unsafe fn read(&self, block: u32, layer: usize, head: usize) -> KvBlock<'a> {
        let (at, part) = self.head(block, layer, head);
        // SAFETY: `head` gives what lies inside the map, which lives for 'a; parts lie in it as `Blocks`
        // says, each at a multiple of 64 bytes from the page that the map begins with; any bits are a number;
        // that nobody writes them is the caller's promise.
        unsafe {
            match self.kv {
                KvType::F16 => KvBlock::F16 { k: slice(at, part), v: slice(at.add(2 * part), part) },
                KvType::I8 => KvBlock::I8 {
                    k: slice(at, part),
                    v: slice(at.add(part), part),
                    k_scales: slice(at.add(2 * part), KV_TOKENS),
                    v_scales: slice(at.add(2 * part + SCALE * KV_TOKENS), KV_TOKENS),
                },
            }
        }
    }

    /// Keys and values of one head in a block, to be written.
    ///
    /// # Safety
    /// Nobody, this thread included, reads or writes this head of this block but through the result while
    /// that is used.
    pub unsafe fn write(&self, block: u32, layer: usize, head: usize) -> KvBlockMut<'a> {
        let (at, part) = self.head(block, layer, head);
        // SAFETY: as for `read`; the parts do not meet, and the result alone reaches them by the caller's
        // promise.
        unsafe {
            match self.kv {
                KvType::F16 => {
                    KvBlockMut::F16 { k: slice_mut(at, part), v: slice_mut(at.add(2 * part), part) }
                }
                KvType::I8 => KvBlockMut::I8 {
                    k: slice_mut(at, part),
                    v: slice_mut(at.add(part), part),
                    k_scales: slice_mut(at.add(2 * part), KV_TOKENS),
                    v_scales: slice_mut(at.add(2 * part + SCALE * KV_TOKENS), KV_TOKENS),
                },
            }
        }
    }
}

/// Numbers from `at` on.
///
/// # Safety
/// As for [`std::slice::from_raw_parts`], with `at` aligned for `T`, of which any bits are a value.
unsafe fn slice<'a, T>(at: *mut u8, len: usize) -> &'a [T] {
    debug_assert!(at.cast::<T>().is_aligned());
    // SAFETY: the caller promises all that the function asks for, of `len` values of `T`.
    unsafe { std::slice::from_raw_parts(at.cast(), len) }
}

/// Numbers from `at` on, to be written.
///
/// # Safety
/// As for [`std::slice::from_raw_parts_mut`], with `at` aligned for `T`, of which any bits are a value.
unsafe fn slice_mut<'a, T>(at: *mut u8, len: usize) -> &'a mut [T] {
    debug_assert!(at.cast::<T>().is_aligned());
    // SAFETY: the caller promises all that the function asks for, of `len` values of `T`.
    unsafe { std::slice::from_raw_parts_mut(at.cast(), len) }
}
