//! The use of logits: sampled from, copied to the caller, or both.

use pocketlm_kernels::sample::{SampleError, Sampler};

use super::{Pass, Step, lock};
use crate::engine::StepResult;
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
    pub result: StepResult,
    /// Why no token was sampled.
    pub failure: Option<SampleError>,
}

impl Step<'_, '_> {
    /// Uses the logits of one selected row.
    pub(super) fn output(&self, view: View, pass: Pass, row: usize) {
        let selected = self.schedule.selected[pass.first + row];
        // SAFETY: logits were written in an earlier phase, and this one writes nothing into the arena.
        let logits = unsafe { self.arena.row(view, row) };
        let mut output = lock(self.items[selected.item].output());
        if let Some(start) = selected.logits_at {
            output.result.logits[start..start + logits.len()].copy_from_slice(logits);
        }
        let Output { sampler, result, failure } = &mut *output;
        if selected.sample
            && let Some(sampler) = sampler
        {
            // The position of the token that is sampled.
            let position = u64::from(self.schedule.ends[selected.row]);
            match sampler.sample(self.kernels, logits, position) {
                Ok(sampled) => {
                    result.token = Some(sampled.token);
                    result.logprob = sampled.logprob;
                    result.top = sampled.top;
                }
                Err(error) => *failure = Some(error),
            }
        }
    }
}
