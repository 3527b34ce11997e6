//! The use of logits: sampled from, copied to the caller, or both.

use pocketlm_kernels::Kernels;
use pocketlm_kernels::sample::{SampleError, Sampler};

use super::{Pass, Step, lock};
use crate::engine::{Details, StepResult};
use crate::plan::View;

/// A row whose logits are asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Selected {
    /// Row of the step.
    pub row: usize,
    pub item: usize,
    /// First logit in the item's result, if they are to be returned.
    pub logits_at: Option<usize>,
    pub sample: bool,
}

/// What a step gives back for an item.
#[derive(Debug, Default)]
pub(crate) struct Output<'a> {
    pub sampler: Option<&'a mut Sampler>,
    /// Guesses at the tokens that follow, in the rows behind the first sampled one.
    pub guesses: &'a [u32],
    /// Tokens that end the text: nothing is sampled behind them.
    pub stops: &'a [u32],
    pub result: StepResult,
    /// Why no token was sampled.
    pub failure: Option<SampleError>,
}

impl Output<'_> {
    /// Samples the next token, unless an earlier one was not as guessed: then this row followed a token that is not there.
    fn sample(&mut self, kernels: &Kernels, logits: &[f32], position: u64) {
        let Self { sampler: Some(sampler), guesses, stops, result, failure } = self else { return };
        if result.token.is_some() || failure.is_some() {
            return;
        }
        match sampler.sample(kernels, logits, position) {
            Ok(sampled) => {
                let guessed = guesses.get(result.accepted) == Some(&sampled.token);
                if guessed && !stops.contains(&sampled.token) {
                    sampler.accept(sampled.token);
                    result.accepted += 1;
                    if sampler.params().logprobs.is_some() {
                        result.earlier.push(Details { logprob: sampled.logprob, top: sampled.top });
                    }
                } else {
                    result.token = Some(sampled.token);
                    result.logprob = sampled.logprob;
                    result.top = sampled.top;
                }
            }
            Err(error) if result.accepted == 0 => *failure = Some(error),
            // As without guesses, the failure is that of the step which has this token as its input.
            Err(_) => {
                result.accepted -= 1;
                let token = guesses[result.accepted];
                sampler.retract(token);
                result.token = Some(token);
                Details { logprob: result.logprob, top: result.top } =
                    result.earlier.pop().unwrap_or_default();
            }
        }
    }

    /// Takes back what a step that failed has counted.
    pub fn retract(&mut self) {
        if let Some(sampler) = &mut self.sampler {
            for &token in self.guesses[..self.result.accepted].iter().rev() {
                sampler.retract(token);
            }
        }
    }
}

impl Step<'_, '_> {
    /// Uses the logits of one selected row.
    ///
    /// Rows of one item are sampled in order, each in the light of the one before: who claims the first of them that this pass has
    /// takes all, and who claims another has nothing to do.
    pub(super) fn output(&self, view: View, pass: Pass, row: usize) {
        let selected = |row: usize| self.schedule.selected[pass.first + row];
        let first = selected(row);
        let follows = |row: usize| selected(row).sample && selected(row).item == first.item;
        if first.sample && row > 0 && follows(row - 1) {
            return;
        }
        let last = (row + 1..pass.rows).take_while(|&row| first.sample && follows(row)).last().unwrap_or(row);
        let mut output = lock(self.items[first.item].output());
        for row in row..=last {
            let selected = selected(row);
            // SAFETY: logits were written before the barrier in front of this phase, which writes nothing
            // into the arena.
            let logits = unsafe { self.arena.row(view, row) };
            if let Some(start) = selected.logits_at {
                output.result.logits[start..start + logits.len()].copy_from_slice(logits);
            }
            if selected.sample {
                // The position of the token that is sampled.
                let position = u64::from(self.schedule.ends[selected.row]);
                output.sample(self.kernels, logits, position);
            }
        }
    }
}
