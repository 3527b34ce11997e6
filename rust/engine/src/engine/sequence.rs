//! Sequences: handles to tables of the cache.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Engine;
use super::inner::Inner;
use crate::error::EngineError;
use crate::kv::SequenceId;

/// Tokens whose keys and values the engine keeps. Dropping it gives its blocks back.
pub struct Sequence {
    engine: Arc<Inner>,
    id: Mutex<Option<SequenceId>>,
    /// A copy of the cache's own count, so that reading it does not wait for a running step.
    length: AtomicUsize,
}

impl Sequence {
    pub(super) fn new(engine: Arc<Inner>, id: SequenceId, length: usize) -> Self {
        Self { engine, id: Mutex::new(Some(id)), length: AtomicUsize::new(length) }
    }

    /// Tokens that it holds.
    pub fn length(&self) -> usize {
        self.length.load(Ordering::Acquire)
    }

    /// A sequence with the same tokens; both share memory until one writes.
    ///
    /// # Errors
    /// When the sequence was freed or the engine closed.
    pub fn fork(&self) -> Result<Self, EngineError> {
        let mut locked = self.engine.lock()?;
        let cache = &mut locked.state()?.cache;
        let id = self.id()?;
        let copy = cache.fork(id);
        let length = cache.length(id);
        drop(locked);
        Ok(Self::new(Arc::clone(&self.engine), copy, length))
    }

    /// Forgets the tokens from `length` on.
    ///
    /// # Errors
    /// When there are not as many, the sequence was freed, or the engine closed.
    pub fn truncate(&self, length: usize) -> Result<(), EngineError> {
        let mut locked = self.engine.lock()?;
        let cache = &mut locked.state()?.cache;
        let id = self.id()?;
        if length > cache.length(id) {
            let reason = format!("{length} exceeds the sequence's {} tokens", cache.length(id));
            return Err(EngineError::parameter("length", reason));
        }
        cache.truncate(id, length);
        self.length.store(length, Ordering::Release);
        Ok(())
    }

    /// Gives the blocks back. Later uses fail; freeing twice does not.
    ///
    /// # Errors
    /// When the engine is unusable.
    pub fn free(&self) -> Result<(), EngineError> {
        let mut locked = self.engine.lock()?;
        let id = self.slot().take();
        self.length.store(0, Ordering::Release);
        if let (Some(id), Ok(state)) = (id, locked.state()) {
            state.cache.free(id);
        }
        Ok(())
    }

    /// The cache's own name of it.
    pub(super) fn id(&self) -> Result<SequenceId, EngineError> {
        self.slot().ok_or_else(|| EngineError::parameter("sequence", "was freed"))
    }

    pub(super) fn belongs_to(&self, engine: &Engine) -> bool {
        Arc::ptr_eq(&self.engine, &engine.inner)
    }

    pub(super) fn set_length(&self, length: usize) {
        self.length.store(length, Ordering::Release);
    }

    fn slot(&self) -> MutexGuard<'_, Option<SequenceId>> {
        self.id.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Sequence {
    fn drop(&mut self) {
        let id = self.slot().take();
        if let Some(id) = id {
            self.engine.release(id);
        }
    }
}
