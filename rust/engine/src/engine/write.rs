//! Several steps in one call: what is sampled is fed back, with guesses at what follows it.

use std::sync::atomic::Ordering;
use std::sync::{MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pocketlm_kernels::sample::Sampler;

use super::{Details, Engine, Logits, Sequence, StepItem, StepResult};
use crate::error::EngineError;
use crate::speculate::{Batch, Continuation, Costs};

/// Tokens to append to a sequence, and what goes on from there.
pub struct WriteItem<'a> {
    /// The sequence.
    pub sequence: &'a Sequence,
    /// Its next tokens.
    pub ids: &'a [u32],
    /// Samples the token that follows.
    pub sampler: Option<&'a mut Sampler>,
    /// Which logits to return, of the first step.
    pub logits: Logits,
    /// How to go on from the sampled token; with none, or without a sampler, the item is for one step.
    pub continuation: Option<&'a mut Continuation>,
}

/// How long to go on.
#[derive(Debug, Clone, Copy)]
pub struct WriteLimits {
    /// Steps at most.
    pub steps: usize,
    /// Time after which no further step begins.
    pub time: Duration,
}

/// What was written for an item.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Written {
    /// The sampled tokens, in order.
    pub tokens: Vec<u32>,
    /// Of each, if asked for.
    pub details: Vec<Details>,
    /// Logits, row-major `[rows, vocab_size]`.
    pub logits: Vec<f32>,
}

impl From<StepResult> for Written {
    /// What one step without guesses gave.
    fn from(result: StepResult) -> Self {
        let StepResult { token, logprob, top, logits, .. } = result;
        let details = logprob.map(|_| Details { logprob, top });
        Self { tokens: token.into_iter().collect(), details: details.into_iter().collect(), logits }
    }
}

impl Engine {
    /// Steps until a text ends, the limits are reached, or [`Engine::interrupt`] is called, at least once. Items that do not continue
    /// make it one step. Where it was measured to pay, steps compute guesses at further tokens too (see [`Continuation`]); results are
    /// the same.
    ///
    /// # Errors
    /// As for [`Engine::step`]. A later step's failure is left to the call that repeats it.
    pub fn write(
        &self,
        items: &mut [WriteItem<'_>],
        limits: WriteLimits,
    ) -> Result<Vec<Written>, EngineError> {
        let began = Instant::now();
        let mut written: Vec<Written> = items.iter().map(|_| Written::default()).collect();
        let mut inputs: Vec<Vec<u32>> = items.iter().map(|item| item.ids.to_vec()).collect();
        let (mut guesses, mut known) = (vec![0; items.len()], vec![0; items.len()]);
        let continues = !items.is_empty()
            && items.iter().all(|item| item.continuation.is_some() && item.sampler.is_some());
        for step in 0..limits.steps.max(1) {
            self.guess(items, &mut inputs, &mut guesses);
            let begun = Instant::now();
            let outcome = self.write_once(items, &inputs, &guesses, step == 0, &mut written);
            if let Err(error) = outcome {
                return if step == 0 { Err(error) } else { Ok(written) };
            }
            let ended = self.settle(items, &mut inputs, &guesses, &written, &mut known, begun.elapsed());
            let interrupted = self.inner.interrupted.swap(false, Ordering::Relaxed);
            if !continues || ended || interrupted || began.elapsed() >= limits.time {
                break;
            }
        }
        Ok(written)
    }

    /// Makes a [`Engine::write`] that is running return after its step. From any thread.
    pub fn interrupt(&self) {
        self.inner.interrupted.store(true, Ordering::Relaxed);
    }

    /// How many tokens a draft model should guess for a text, if it is one of `texts` that generate.
    pub fn drafts(&self, continuation: &Continuation, texts: usize) -> usize {
        continuation.drafts(Batch { costs: &self.costs(), texts, guesses: 0 })
    }

    fn costs(&self) -> MutexGuard<'_, Costs> {
        self.inner.costs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds guesses behind the one token of each text that generates.
    fn guess(&self, items: &mut [WriteItem<'_>], inputs: &mut [Vec<u32>], guesses: &mut [usize]) {
        let texts = inputs.iter().filter(|ids| ids.len() == 1).count();
        let rows: usize = inputs.iter().map(Vec::len).sum();
        let mut room = self.max_rows().saturating_sub(rows);
        let costs = self.costs();
        let mut made = 0;
        for ((item, ids), guesses) in items.iter_mut().zip(inputs).zip(guesses) {
            *guesses = 0;
            if let (1, Some(continuation), Some(_), Logits::None) =
                (ids.len(), &mut item.continuation, &item.sampler, item.logits)
            {
                let batch = Batch { costs: &costs, texts, guesses: made };
                *guesses = continuation.guess(room, batch, ids);
                // A draft model may know tokens that this one has no embedding for.
                let limit = self.inner.facts.id_limit;
                if let Some(at) = ids.iter().skip(1).position(|&id| id as usize >= limit) {
                    ids.truncate(at + 1);
                    *guesses = at;
                }
                room -= *guesses;
                made += *guesses;
            }
        }
    }

    fn write_once(
        &self,
        items: &mut [WriteItem<'_>],
        inputs: &[Vec<u32>],
        guesses: &[usize],
        first: bool,
        written: &mut [Written],
    ) -> Result<(), EngineError> {
        let mut steps: Vec<StepItem<'_>> = Vec::with_capacity(items.len());
        for ((item, ids), &guesses) in items.iter_mut().zip(inputs).zip(guesses) {
            let logits = if first { item.logits } else { Logits::None };
            let step = StepItem::new(item.sequence, ids, item.sampler.as_deref_mut(), logits);
            let stops = item.continuation.as_deref().map_or(&[][..], Continuation::stops);
            steps.push(step.guessing(guesses, stops));
        }
        self.step(&mut steps)?;
        for (((step, ids), &guesses), written) in steps.into_iter().zip(inputs).zip(guesses).zip(written) {
            let result = step.into_result();
            let guessed = &ids[ids.len() - guesses..][..result.accepted];
            written.tokens.extend_from_slice(guessed);
            written.tokens.extend(result.token);
            if result.logprob.is_some() {
                written.details.extend(result.earlier);
                written.details.push(Details { logprob: result.logprob, top: result.top });
            }
            if first {
                written.logits = result.logits;
            }
        }
        Ok(())
    }

    /// Learns from a step and prepares the next. Returns whether a text has ended.
    fn settle(
        &self,
        items: &mut [WriteItem<'_>],
        inputs: &mut [Vec<u32>],
        guesses: &[usize],
        written: &[Written],
        known: &mut [usize],
        time: Duration,
    ) -> bool {
        let mut costs = self.costs();
        let (texts, made) = (items.len(), guesses.iter().sum());
        if inputs.iter().zip(guesses).all(|(ids, guesses)| ids.len() == 1 + guesses) {
            costs.note(texts, made, time.as_secs_f64());
        }
        let mut ended = false;
        for (((item, ids), written), known) in items.iter_mut().zip(inputs).zip(written).zip(known) {
            let (Some(continuation), Some(&last)) = (&mut item.continuation, written.tokens.last()) else {
                continue;
            };
            continuation.take(&written.tokens[*known..], Batch { costs: &costs, texts, guesses: made });
            *known = written.tokens.len();
            ended |= continuation.ended();
            ids.clear();
            ids.push(last);
        }
        ended
    }
}
