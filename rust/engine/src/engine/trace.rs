//! A prefill that keeps the result of every operation.

use super::crew::CrewSize;
use super::step::check_ids;
use super::{Engine, Memory, State};
use crate::error::EngineError;
use crate::plan::{Options, Plan};

/// Rows that are traced at once: all results of all operations are in memory.
const TRACE_ROWS: usize = 16;

/// The result of an operation.
#[derive(Debug, Clone, PartialEq)]
pub struct Traced {
    /// The operation's name.
    pub name: String,
    /// Channels.
    pub width: usize,
    /// Row-major `[tokens, width]`.
    pub values: Vec<f32>,
}

impl Engine {
    /// Runs a prefill of `ids` from an empty sequence with a plan that fuses nothing, in memory of its own, and returns the result of
    /// every operation in order. A norm's quantized result is not shown: values are what the next operation is given before it
    /// quantizes.
    ///
    /// # Errors
    /// As for a step; the trace's memory, results included, counts beside the engine's.
    pub fn trace(&self, ids: &[u32]) -> Result<Vec<Traced>, EngineError> {
        let facts = &self.inner.facts;
        if ids.is_empty() {
            return Err(EngineError::parameter("ids", "are empty"));
        }
        if ids.len() > facts.graph.context_length {
            return Err(EngineError::ContextLength { tokens: ids.len(), limit: facts.graph.context_length });
        }
        check_ids(ids, facts)?;
        self.inner.lock()?.state()?;
        let rows = ids.len().min(TRACE_ROWS);
        let options = Options { max_rows: rows, precise: facts.precise, trace: true };
        let plan = Plan::new(&facts.graph, &facts.store, options)?;
        let width: u64 = facts.graph.ops.iter().map(|op| op.width as u64).sum();
        let results = width.saturating_mul(4 * ids.len() as u64);
        let memory = Memory::of(&plan, facts.kv, ids.len(), ids.len(), facts.threads)?;
        memory.beside(facts.memory, results).check("the trace of the model", facts.max_memory)?;
        let mut traced = Vec::with_capacity(facts.graph.ops.len());
        for op in &facts.graph.ops {
            let len = ids.len().checked_mul(op.width);
            let mut values = Vec::new();
            let reserved = len.and_then(|len| values.try_reserve_exact(len).ok());
            reserved.ok_or_else(|| EngineError::Memory {
                what: format!("trace of {}", op.name),
                needed: len.map_or(u64::MAX, |len| 4 * len as u64),
                available: 0,
            })?;
            traced.push(Traced { name: op.name.clone(), width: op.width, values });
        }
        let crew = CrewSize::new(facts.threads, true);
        let mut state = State::new(plan, facts.kv, ids.len(), ids.len(), facts.threads, crew)?;
        let id = state.cache.create();
        for chunk in ids.chunks(rows) {
            state.cache.extend(&[(id, chunk.len())])?;
            state.schedule.clear();
            state.schedule.add(&state.cache, id, chunk);
            state.schedule.divide(facts.threads);
            state.run(&[], facts, facts.threads, None)?;
            let arena = state.arena.view(&state.plan);
            for (traced, view) in traced.iter_mut().zip(&state.plan.values) {
                for row in 0..chunk.len() {
                    // SAFETY: the step is over; nobody else uses the arena.
                    traced.values.extend_from_slice(unsafe { arena.row(*view, row) });
                }
            }
        }
        Ok(traced)
    }
}
