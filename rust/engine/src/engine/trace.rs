//! A prefill that keeps the result of every operation.

use super::crew::CrewSize;
use super::facts::Facts;
use super::step::check_ids;
use super::{Engine, Memory, State};
use crate::error::EngineError;
use crate::plan::{Options, Plan};

/// Rows that are traced at once: as many as keep the results of all operations within this many bytes, between these bounds.
const TRACE_BYTES: usize = 32 << 20;
const TRACE_ROWS: std::ops::RangeInclusive<usize> = 16..=256;

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
    /// every operation in order, or of those that `names` lists. A norm's quantized result is not shown: values are what the next
    /// operation is given before it quantizes.
    ///
    /// # Errors
    /// As for a step, and when a name is not that of an operation; the trace's memory, results included, counts beside the engine's.
    pub fn trace(&self, ids: &[u32], names: Option<&[String]>) -> Result<Vec<Traced>, EngineError> {
        let facts = &self.inner.facts;
        if ids.is_empty() {
            return Err(EngineError::parameter("ids", "are empty"));
        }
        if ids.len() > facts.graph.context_length {
            return Err(EngineError::ContextLength { tokens: ids.len(), limit: facts.graph.context_length });
        }
        check_ids(ids, facts)?;
        self.inner.lock()?.state()?;
        let ops = wanted(facts, names)?;
        let widths: usize = facts.graph.ops.iter().map(|op| op.width).sum();
        let fitting = (TRACE_BYTES / (4 * widths)).clamp(*TRACE_ROWS.start(), *TRACE_ROWS.end());
        let rows = ids.len().min(fitting);
        let options = Options {
            max_rows: rows,
            precise: facts.precise,
            trace: true,
            packs_rows: facts.kernels.packs_rows(),
        };
        let plan = Plan::new(&facts.graph, &facts.store, options)?;
        let width: u64 = ops.iter().map(|&op| facts.graph.ops[op].width as u64).sum();
        let results = width.saturating_mul(4 * ids.len() as u64);
        let memory = Memory::of(&plan, facts.kv, ids.len(), ids.len(), facts.threads)?;
        memory.beside(facts.memory, results).check("the trace of the model", facts.max_memory)?;
        let mut traced = Vec::with_capacity(ops.len());
        for op in ops.iter().map(|&op| &facts.graph.ops[op]) {
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
            for (traced, view) in traced.iter_mut().zip(ops.iter().map(|&op| state.plan.values[op])) {
                for row in 0..chunk.len() {
                    // SAFETY: the step is over, and the view is of an arena that is borrowed: nobody writes
                    // into it.
                    traced.values.extend_from_slice(unsafe { arena.row(view, row) });
                }
            }
        }
        Ok(traced)
    }
}

/// The operations of these names, in order of execution; all of them without names.
fn wanted(facts: &Facts, names: Option<&[String]>) -> Result<Vec<usize>, EngineError> {
    let ops = &facts.graph.ops;
    let Some(names) = names else { return Ok((0..ops.len()).collect()) };
    if let Some(name) = names.iter().find(|name| !ops.iter().any(|op| op.name == **name)) {
        return Err(EngineError::parameter("names", format!("{name:?} is not an operation of this model")));
    }
    Ok((0..ops.len()).filter(|&op| names.contains(&ops[op].name)).collect())
}
