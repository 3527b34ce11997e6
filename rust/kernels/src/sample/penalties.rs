//! Penalties on tokens that were there before.

use std::collections::HashMap;

use super::params::SamplingParams;

/// Occurrences of tokens: how often in the output; 0 for tokens of the prompt alone.
#[derive(Debug, Clone)]
pub(super) struct History {
    counts: HashMap<u32, u32>,
    prompt: Vec<u32>,
}

impl History {
    pub(super) fn new(prompt: &[u32]) -> Self {
        let mut tokens = prompt.to_vec();
        tokens.sort_unstable();
        tokens.dedup();
        Self { counts: tokens.iter().map(|&t| (t, 0)).collect(), prompt: tokens }
    }

    pub(super) fn accept(&mut self, token: u32) {
        let count = self.counts.entry(token).or_insert(0);
        *count = count.saturating_add(1);
    }

    /// Takes back what `accept` did last for this token.
    pub(super) fn retract(&mut self, token: u32) {
        match self.counts.get_mut(&token) {
            Some(count) if *count > 1 || self.prompt.binary_search(&token).is_ok() => {
                *count = count.saturating_sub(1);
            }
            _ => drop(self.counts.remove(&token)),
        }
    }

    pub(super) fn clear_output(&mut self) {
        self.counts = self.prompt.iter().map(|&t| (t, 0)).collect();
    }

    /// Whether the penalties change nothing.
    pub(super) fn is_neutral(&self, p: &SamplingParams) -> bool {
        let without_output = p.presence_penalty == 0.0 && p.frequency_penalty == 0.0;
        self.counts.is_empty() || (p.repetition_penalty == 1.0 && without_output)
    }

    /// Applies them. Each token is changed by itself, so the order of the map does not matter. Tokens beyond the vocabulary
    /// have no logit to change.
    pub(super) fn penalize(&self, p: &SamplingParams, logits: &mut [f32]) {
        for (&token, &count) in &self.counts {
            let Some(x) = logits.get_mut(token as usize) else { continue };
            *x = if *x > 0.0 { *x / p.repetition_penalty } else { *x * p.repetition_penalty };
            if count > 0 {
                *x -= p.frequency_penalty * count as f32;
                *x -= p.presence_penalty;
            }
        }
    }
}
