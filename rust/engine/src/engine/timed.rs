//! Steps whose phases are timed, and what the phases are.

use std::time::{Duration, Instant};

use super::{Engine, StepItem};
use crate::error::EngineError;
use crate::plan::{Phase, Plan};

/// A phase of a step: work between two barriers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PhaseInfo {
    /// `rows`, `linear`, `attention` or `output`.
    pub kind: &'static str,
    /// Names of the graph's operations that it completes or prepares, with their shares in its work: bytes of the weights for
    /// products (0 for what goes along in their epilogues), about the elements touched for work on rows.
    pub members: Vec<(String, u64)>,
    /// Runs only on rows whose logits are asked for.
    pub tail: bool,
}

impl Engine {
    /// The phases of a step, in order.
    ///
    /// # Errors
    /// When the engine is closed.
    pub fn phases(&self) -> Result<Vec<PhaseInfo>, EngineError> {
        let mut locked = self.inner.lock()?;
        let plan = &locked.state()?.plan;
        let name = |op: usize| self.inner.facts.graph.ops[op].name.clone();
        let info = |(index, phase): (usize, &Phase)| PhaseInfo {
            kind: kind(phase),
            members: members(plan, index).into_iter().map(|(op, share)| (name(op), share)).collect(),
            tail: plan.tail.contains(&index),
        };
        Ok(plan.phases.iter().enumerate().map(info).collect())
    }

    /// As [`Engine::step`], and returns the time of each phase of [`Engine::phases`], then of what is in none (checks, waking the
    /// workers, the return). The sum is the time of the step. Results are the same; each phase takes the time of reading the clock
    /// longer.
    ///
    /// # Errors
    /// As for a step.
    pub fn step_timed(&self, items: &mut [StepItem<'_>]) -> Result<Vec<Duration>, EngineError> {
        let mut times = Vec::new();
        self.step_with(items, Some((Instant::now(), &mut times)))?;
        Ok(times)
    }
}

fn kind(phase: &Phase) -> &'static str {
    match phase {
        Phase::Rows(_) => "rows",
        Phase::Linear(_) => "linear",
        Phase::Attention(_) => "attention",
        Phase::Output(_) => "output",
    }
}

/// Operations with shares, each once, in order.
fn members(plan: &Plan, phase: usize) -> Vec<(usize, u64)> {
    let mut found: Vec<(usize, u64)> = Vec::new();
    for &(op, share) in &plan.members[phase] {
        match found.iter_mut().find(|(other, _)| *other == op) {
            Some((_, sum)) => *sum += share,
            None => found.push((op, share)),
        }
    }
    found
}
