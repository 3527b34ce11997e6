//! Keys and values of a sequence as bytes, to be kept outside of the cache.

use std::sync::Arc;

use super::{Engine, Sequence};
use crate::error::EngineError;
use crate::kv::KV_TOKENS;

impl Engine {
    /// Bytes of the keys and values of a block of 64 tokens.
    ///
    /// # Errors
    /// When the engine is closed.
    pub fn block_bytes(&self) -> Result<usize, EngineError> {
        Ok(self.inner.lock()?.state()?.cache.block_bytes())
    }

    /// Keys and values of a sequence: blocks of 64 tokens of [`Engine::block_bytes`], the same on every machine. What lies behind the
    /// last token is zero.
    ///
    /// # Errors
    /// When the sequence is not this engine's, was freed, or the engine is closed; when there is no memory for a copy.
    pub fn export(&self, sequence: &Sequence) -> Result<Vec<u8>, EngineError> {
        if !sequence.belongs_to(self) {
            return Err(EngineError::parameter("sequence", "belongs to another engine"));
        }
        let mut locked = self.inner.lock()?;
        let cache = &locked.state()?.cache;
        cache.export(sequence.id()?)
    }

    /// A sequence of `length` tokens from what [`Engine::export`] gave for as many, by an engine of the same model.
    ///
    /// # Errors
    /// When the bytes do not fit the number of tokens, these exceed the context, or the cache has no room.
    pub fn import(&self, length: usize, bytes: &[u8]) -> Result<Sequence, EngineError> {
        let limit = self.context_length();
        if length > limit {
            return Err(EngineError::ContextLength { tokens: length, limit });
        }
        let mut locked = self.inner.lock()?;
        let cache = &mut locked.state()?.cache;
        let expected = length.div_ceil(KV_TOKENS) * cache.block_bytes();
        if bytes.len() != expected {
            let reason = format!("has {} bytes, {length} tokens have {expected}", bytes.len());
            return Err(EngineError::parameter("data", reason));
        }
        let id = cache.import(length, bytes)?;
        drop(locked);
        Ok(Sequence::new(Arc::clone(&self.inner), id, length))
    }
}
