//! The KV cache: blocks of 64 tokens, shared between sequences, copied when written.
//!
//! Memory is one anonymous map that the system commits page by page, so that a block that was never used costs nothing.
//! Behind the end of a sequence its last block holds whatever an earlier use left there. Attention reads whole groups of tokens
//! and takes nothing of what it masks; a test of the kernels fills it with NaN.

mod memory;
mod table;

pub use memory::{CacheShape, KvView};
pub(crate) use table::{SequenceId, Tables};

use crate::error::EngineError;
use crate::reserve::reserved;
use memory::Blocks;
use pocketlm_kernels::KvType;

/// Tokens in a block.
pub const KV_TOKENS: usize = 64;

/// Blocks and who holds them.
pub(crate) struct KvCache {
    blocks: Blocks,
    tables: Tables,
}

impl KvCache {
    /// Bytes that a cache for `tokens` tokens (rounded up to blocks) takes, or `None` if that overflows.
    pub fn bytes(layers: &[CacheShape], kv: KvType, tokens: usize) -> Option<u64> {
        Blocks::bytes(layers, kv, tokens.div_ceil(KV_TOKENS))
    }

    /// An empty cache (see [`KvCache::bytes`]) for sequences of up to `longest` tokens.
    pub fn new(
        layers: &[CacheShape],
        kv: KvType,
        tokens: usize,
        longest: usize,
    ) -> Result<Self, EngineError> {
        let count = tokens.div_ceil(KV_TOKENS);
        Ok(Self {
            blocks: Blocks::new(layers, kv, count)?,
            tables: Tables::new(count, longest.div_ceil(KV_TOKENS)),
        })
    }

    /// Tokens that fit into the free blocks.
    pub fn free_tokens(&self) -> usize {
        self.tables.free_blocks() * KV_TOKENS
    }

    /// A new, empty sequence.
    pub fn create(&mut self) -> SequenceId {
        self.tables.create()
    }

    /// A sequence with the same tokens, sharing all blocks.
    pub fn fork(&mut self, id: SequenceId) -> SequenceId {
        self.tables.fork(id)
    }

    /// Gives the blocks of a sequence back.
    pub fn free(&mut self, id: SequenceId) {
        self.tables.truncate(id, 0);
        self.tables.remove(id);
    }

    /// Tokens of a sequence.
    pub fn length(&self, id: SequenceId) -> usize {
        self.tables.length(id)
    }

    /// The blocks of a sequence in order of their tokens.
    pub fn table(&self, id: SequenceId) -> &[u32] {
        self.tables.blocks(id)
    }

    /// Forgets the tokens from `length` on.
    pub fn truncate(&mut self, id: SequenceId, length: usize) {
        self.tables.truncate(id, length);
    }

    /// Makes room for the given number of further tokens of each sequence (every sequence at most once) and counts them as
    /// present: blocks are reserved, and shared blocks that would be written are copied.
    ///
    /// # Errors
    /// [`EngineError::CacheFull`]; nothing has changed then.
    pub fn extend(&mut self, wanted: &[(SequenceId, usize)]) -> Result<(), EngineError> {
        let needed = self.tables.blocks_needed(wanted);
        if needed > self.tables.free_blocks() {
            return Err(EngineError::CacheFull { needed, free: self.tables.free_blocks(), block: KV_TOKENS });
        }
        for &(id, tokens) in wanted {
            if let Some((old, new)) = self.tables.unshare_last(id) {
                self.blocks.copy(old, new);
            }
            self.tables.grow(id, tokens);
        }
        Ok(())
    }

    /// Bytes of a block of [`KV_TOKENS`] tokens.
    pub fn block_bytes(&self) -> usize {
        self.blocks.block_bytes()
    }

    /// Keys and values of a sequence: its blocks in order, little-endian; what lies behind its end is zero.
    ///
    /// # Errors
    /// [`EngineError::Memory`]
    pub fn export(&self, id: SequenceId) -> Result<Vec<u8>, EngineError> {
        let mut left = self.tables.length(id);
        let len = left.div_ceil(KV_TOKENS) * self.block_bytes();
        let mut bytes = reserved(len, "a copy of keys and values")?;
        for &block in self.tables.blocks(id) {
            self.blocks.export(block, left.min(KV_TOKENS), &mut bytes);
            left = left.saturating_sub(KV_TOKENS);
        }
        Ok(bytes)
    }

    /// A new sequence of `length` tokens from what [`KvCache::export`] gave for as many.
    ///
    /// # Errors
    /// [`EngineError::CacheFull`]
    pub fn import(&mut self, length: usize, bytes: &[u8]) -> Result<SequenceId, EngineError> {
        let id = self.tables.create();
        if let Err(error) = self.extend(&[(id, length)]) {
            self.tables.remove(id);
            return Err(error);
        }
        for (&block, bytes) in
            self.tables.blocks(id).iter().zip(bytes.chunks_exact(self.block_bytes().max(1)))
        {
            self.blocks.import(block, bytes);
        }
        Ok(id)
    }

    /// Where kernels read and write.
    pub fn view(&self) -> KvView<'_> {
        self.blocks.view()
    }
}

#[cfg(test)]
mod tests;
