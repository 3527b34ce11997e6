//! Memory of an engine, counted before it is allocated.

use std::fs;

use pocketlm_kernels::KvType;

use crate::error::EngineError;
use crate::kv::KvCache;
use crate::plan::Plan;
use crate::run::{Limits, Schedule, Worker};

/// Bytes by purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// Weights that the model reads, mapped or owned.
    pub weights: u64,
    /// The KV cache when full; pages that were never used are not committed.
    pub cache: u64,
    /// Activations and workers' memory.
    pub scratch: u64,
}

impl Memory {
    /// The memory of a plan's engine, for sequences of up to `tokens` tokens.
    pub(super) fn of(
        plan: &Plan,
        kv: KvType,
        cache_tokens: usize,
        tokens: usize,
        threads: usize,
    ) -> Result<Self, EngineError> {
        let cache = KvCache::bytes(&plan.caches, kv, cache_tokens)
            .ok_or_else(|| too_much("the KV cache", u64::MAX, 0))?;
        let scratch = Worker::bytes(plan, tokens)
            .and_then(|worker| worker.checked_mul(threads as u64))
            .and_then(|workers| workers.checked_add(Schedule::bytes(plan.max_rows)?))
            .and_then(|bytes| {
                bytes.checked_add(Limits::new(plan).bytes())?.checked_add(plan.arena_bytes as u64)
            })
            .ok_or_else(|| too_much("scratch", u64::MAX, 0))?;
        Ok(Self { weights: plan.weights.bytes(), cache, scratch })
    }

    /// Everything.
    pub fn total(&self) -> u64 {
        self.weights.saturating_add(self.cache).saturating_add(self.scratch)
    }

    /// This memory beside that of `engine`, which reads the same weights, and `results` bytes.
    pub(super) fn beside(self, engine: Self, results: u64) -> Self {
        let scratch = self.scratch.saturating_add(engine.scratch).saturating_add(results);
        Self { cache: self.cache.saturating_add(engine.cache), scratch, ..self }
    }

    /// Refuses what exceeds the limit, or without one the machine. `what` takes the memory.
    pub(super) fn check(&self, what: &str, limit: Option<u64>) -> Result<(), EngineError> {
        let (limit, place) = match limit {
            Some(limit) => (limit, "within max_memory"),
            // Weights are mapped, and need not be resident all at once.
            None => {
                (installed().map_or(u64::MAX, |bytes| bytes.saturating_add(self.weights)), "on this machine")
            }
        };
        if self.total() > limit {
            return Err(too_much(&format!("{what} {place}"), self.total(), limit));
        }
        Ok(())
    }
}

fn too_much(what: &str, needed: u64, available: u64) -> EngineError {
    EngineError::Memory { what: what.into(), needed, available }
}

/// Bytes of memory that the machine has, where Linux tells.
fn installed() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}
