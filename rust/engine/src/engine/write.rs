//! Several steps in one call: what is sampled is fed back, with guesses at what follows it.

use std::mem;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use pocketlm_kernels::sample::Sampler;

use super::room::Room;
use super::{Details, Engine, Logits, Sequence, State, StepItem, StepResult};
use crate::error::EngineError;
use crate::kv::KV_TOKENS;
use crate::speculate::{Batch, Continuation, Costs, MAX_GUESSES};

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

/// What an item gives to the next step.
struct Input {
    ids: Vec<u32>,
    /// How many of them, the last ones, are guesses.
    guesses: usize,
    /// Written tokens that the continuation has taken.
    known: usize,
}

impl Input {
    fn new(item: &WriteItem<'_>) -> Self {
        let mut ids = Vec::with_capacity(item.ids.len().max(1 + MAX_GUESSES));
        ids.extend_from_slice(item.ids);
        Self { ids, guesses: 0, known: 0 }
    }
}

impl Written {
    /// Nothing yet, with memory for the tokens of so many steps of a sequence of at most `longest` tokens.
    fn reserved(item: &mut WriteItem<'_>, steps: usize, longest: usize) -> Self {
        // The last token that is sampled is not in the sequence.
        let most =
            item.continuation.as_mut().map_or(1, |continuation| continuation.reserve(steps, longest + 1));
        Self { tokens: Vec::with_capacity(most), ..Self::default() }
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
        if items.is_empty() {
            return Ok(Vec::new());
        }
        let began = Instant::now();
        let continues = items.iter().all(|item| item.continuation.is_some() && item.sampler.is_some());
        let steps = if continues { limits.steps.max(1) } else { 1 };
        let longest = self.context_length().min(self.cache_tokens());
        // All memory is taken here, none in steps.
        let mut inputs: Vec<Input> = items.iter().map(Input::new).collect();
        let mut written: Vec<Written> =
            items.iter_mut().map(|item| Written::reserved(item, steps, longest)).collect();
        let mut list = Vec::with_capacity(items.len());
        for step in 0..steps {
            match self.write_once(items, &mut inputs, step == 0, &mut written, &mut list) {
                Ok(()) => {}
                Err(error) if step == 0 => return Err(error),
                Err(_) => break,
            }
            let ended =
                items.iter().any(|item| item.continuation.as_deref().is_some_and(Continuation::ended));
            let interrupted = self.inner.interrupted.swap(false, Ordering::Relaxed);
            if ended || interrupted || began.elapsed() >= limits.time {
                break;
            }
        }
        Ok(written)
    }

    /// Makes a [`Engine::write`] that is running return after its step. From any thread.
    pub fn interrupt(&self) {
        self.inner.interrupted.store(true, Ordering::Relaxed);
    }

    /// How many tokens a draft model should guess for a text, if it is one of `texts` that generate; none while a step runs.
    pub fn drafts(&self, continuation: &Continuation, texts: usize) -> usize {
        let found = self.inner.try_lock().map(|mut locked| {
            let costs = &locked.state()?.costs;
            Ok::<_, EngineError>(continuation.drafts(Batch { costs, texts, guesses: 0 }))
        });
        found.and_then(Result::ok).unwrap_or(0)
    }

    /// Adds guesses behind the one token of each text that generates, as many as there is room for.
    fn guess(&self, state: &State, items: &mut [WriteItem<'_>], inputs: &mut [Input]) {
        let texts = inputs.iter().filter(|input| input.ids.len() == 1).count();
        let blocks = state.cache.free_tokens() / KV_TOKENS;
        let mut room = Room::new(self.max_rows(), self.context_length(), blocks);
        for (item, input) in items.iter().zip(&*inputs) {
            room.set_aside(item.sequence.length(), input.ids.len());
        }
        let mut made = 0;
        for (item, Input { ids, guesses, .. }) in items.iter_mut().zip(inputs) {
            *guesses = 0;
            if let (1, Some(continuation), Some(_), Logits::None) =
                (ids.len(), &mut item.continuation, &item.sampler, item.logits)
            {
                let length = item.sequence.length() + 1;
                let batch = Batch { costs: &state.costs, texts, guesses: made };
                *guesses = continuation.guess(room.behind(length), batch, ids);
                // A draft model may know tokens that this one has no embedding for.
                let limit = self.inner.facts.id_limit;
                if let Some(at) = ids.iter().skip(1).position(|&id| id as usize >= limit) {
                    ids.truncate(at + 1);
                    *guesses = at;
                }
                room.take(length, *guesses);
                made += *guesses;
            }
        }
    }

    /// One step with guesses, and what is learned from it. `list` is empty before and after: only its memory is used.
    fn write_once(
        &self,
        items: &mut [WriteItem<'_>],
        inputs: &mut [Input],
        first: bool,
        written: &mut [Written],
        list: &mut Vec<StepItem<'static>>,
    ) -> Result<(), EngineError> {
        // Held from the guesses on, so that nobody takes the room that they were given.
        let mut locked = self.inner.lock()?;
        let state = locked.state()?;
        self.guess(state, items, inputs);
        let begun = Instant::now();
        let mut steps = emptied(mem::take(list));
        for (item, input) in items.iter_mut().zip(&*inputs) {
            let logits = if first { item.logits } else { Logits::None };
            let step = StepItem::new(item.sequence, &input.ids, item.sampler.as_deref_mut(), logits);
            let stops = item.continuation.as_deref().map_or(&[][..], Continuation::stops);
            steps.push(step.guessing(input.guesses, stops));
        }
        self.step_locked(state, &mut steps, None)?;
        let time = begun.elapsed();
        for ((step, input), written) in steps.drain(..).zip(&*inputs).zip(&mut *written) {
            let result = step.into_result();
            let guessed = &input.ids[input.ids.len() - input.guesses..][..result.accepted];
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
        *list = emptied(steps);
        settle(&mut state.costs, items, inputs, written, time);
        Ok(())
    }
}

/// Learns from a step and prepares the next.
fn settle(
    costs: &mut Costs,
    items: &mut [WriteItem<'_>],
    inputs: &mut [Input],
    written: &[Written],
    time: Duration,
) {
    let (texts, made) = (items.len(), inputs.iter().map(|input| input.guesses).sum());
    if inputs.iter().all(|input| input.ids.len() == 1 + input.guesses) {
        costs.note(texts, made, time.as_secs_f64());
    }
    for ((item, Input { ids, known, .. }), written) in items.iter_mut().zip(inputs).zip(written) {
        let (Some(continuation), Some(&last)) = (&mut item.continuation, written.tokens.last()) else {
            continue;
        };
        continuation.take(&written.tokens[*known..], Batch { costs, texts, guesses: made });
        *known = written.tokens.len();
        ids.clear();
        ids.push(last);
    }
}

/// An empty list of steps in the memory of another, whose steps borrowed something else: collecting reuses it, as the size of a step is
/// the same.
fn emptied<'a>(list: Vec<StepItem<'_>>) -> Vec<StepItem<'a>> {
    list.into_iter().map_while(|_| None).collect()
}
