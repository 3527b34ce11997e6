//! A step: checked whole, then run in one dispatch; a step that fails leaves all sequences as they were.

use std::sync::atomic::AtomicUsize;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use pocketlm_kernels::sample::{SampleError, Sampler};

use super::facts::Facts;
use super::{Engine, Sequence, State};
use crate::error::EngineError;
use crate::pool::ThreadPool;
use crate::run::{Clock, Output, Selected, Step};

/// Which logits to return.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Logits {
    /// None.
    #[default]
    None,
    /// Those of the item's last token.
    Last,
    /// Those of each of its tokens.
    All,
}

/// What a sampler reports of a token.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Details {
    /// Its log-probability.
    pub logprob: Option<f32>,
    /// The most probable tokens with their log-probabilities.
    pub top: Vec<(u32, f32)>,
}

/// What a step gives for an item.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StepResult {
    /// The token that was sampled.
    pub token: Option<u32>,
    /// Guesses that were sampled before it (see [`StepItem::guessing`]).
    pub accepted: usize,
    /// Of each of those, if asked for.
    pub earlier: Vec<Details>,
    /// The token's log-probability, if asked for.
    pub logprob: Option<f32>,
    /// The most probable tokens with their log-probabilities, if asked for.
    pub top: Vec<(u32, f32)>,
    /// Logits, row-major `[rows, vocab_size]`.
    pub logits: Vec<f32>,
}

/// Tokens to append to a sequence, and what to return.
pub struct StepItem<'a> {
    sequence: &'a Sequence,
    ids: &'a [u32],
    logits: Logits,
    sample: bool,
    guesses: usize,
    output: Mutex<Output<'a>>,
}

impl<'a> StepItem<'a> {
    /// Appends `ids`; with a sampler, samples the token that follows them.
    pub fn new(
        sequence: &'a Sequence,
        ids: &'a [u32],
        sampler: Option<&'a mut Sampler>,
        logits: Logits,
    ) -> Self {
        let sample = sampler.is_some();
        let output = Mutex::new(Output { sampler, ..Output::default() });
        Self { sequence, ids, logits, sample, guesses: 0, output }
    }

    /// Says that the last `guesses` of the ids are guesses at what the sampler will choose. They are computed together with the
    /// rest, and sampling goes on through them up to the first that differs, or up to one of `stops`. The result is what as
    /// many steps of one token would give, bit for bit, and the sequence then holds what they would have left.
    #[must_use]
    pub fn guessing(mut self, guesses: usize, stops: &'a [u32]) -> Self {
        let output = self.output.get_mut().unwrap_or_else(PoisonError::into_inner);
        output.guesses = &self.ids[self.ids.len().saturating_sub(guesses)..];
        output.stops = stops;
        self.guesses = guesses;
        self
    }

    /// The result, after the step.
    pub fn into_result(self) -> StepResult {
        self.output.into_inner().unwrap_or_else(PoisonError::into_inner).result
    }

    pub(crate) fn output(&self) -> &Mutex<Output<'a>> {
        &self.output
    }
}

impl Engine {
    /// Appends tokens to sequences, any mix of prompt chunks and single tokens, and samples.
    ///
    /// # Errors
    /// When an item does not fit (see the messages), the cache is full, or a worker fails. All sequences are then as before.
    pub fn step(&self, items: &mut [StepItem<'_>]) -> Result<(), EngineError> {
        self.step_with(items, None)
    }

    /// A step, measured since an instant if given where to put the times of its phases.
    pub(super) fn step_with(
        &self,
        items: &mut [StepItem<'_>],
        timing: Option<(Instant, &mut Vec<Duration>)>,
    ) -> Result<(), EngineError> {
        if items.is_empty() {
            return Ok(());
        }
        self.step_locked(self.inner.lock()?.state()?, items, timing)
    }

    /// A step by who holds the engine's state already.
    pub(super) fn step_locked(
        &self,
        state: &mut State,
        items: &mut [StepItem<'_>],
        timing: Option<(Instant, &mut Vec<Duration>)>,
    ) -> Result<(), EngineError> {
        let facts = &self.inner.facts;
        self.check(state, items)?;
        for item in items.iter_mut() {
            item.reserve(facts.graph.vocab_size)?;
        }
        state.cache.extend(&state.wanted)?;
        let rows = state.wanted.iter().map(|&(_, added)| added).sum();
        let threads = state.crew.of(rows);
        state.arrange(items, facts, threads);
        let begun = Instant::now();
        let clock = timing.as_ref().map(|&(start, _)| Clock::new(state.plan.phases.len(), threads, start));
        let outcome = state
            .run(items, facts, threads, clock.as_ref())
            .and_then(|()| items.iter_mut().try_for_each(StepItem::check_sampled));
        state.crew.note(rows, begun.elapsed().as_secs_f64());
        for (item, &(id, added)) in items.iter_mut().zip(&state.wanted) {
            let dropped = if outcome.is_ok() { item.accept() } else { item.retract(added) };
            let length = state.cache.length(id) - dropped;
            state.cache.truncate(id, length);
            item.sequence.set_length(length);
        }
        if let (Some(clock), Some((_, times))) = (clock, timing) {
            *times = clock.into_times(Instant::now());
        }
        outcome
    }

    /// Checks all items, and notes how much each sequence grows.
    fn check(&self, state: &mut State, items: &[StepItem<'_>]) -> Result<(), EngineError> {
        let facts = &self.inner.facts;
        let rows =
            items.iter().try_fold(0usize, |sum, item| sum.checked_add(item.ids.len())).unwrap_or(usize::MAX);
        if rows > facts.max_rows {
            return Err(EngineError::parameter(
                "items",
                format!("{rows} tokens in a step of at most {}", facts.max_rows),
            ));
        }
        state.wanted.clear();
        for item in items {
            if !item.sequence.belongs_to(self) {
                return Err(EngineError::parameter("sequence", "belongs to another engine"));
            }
            let id = item.sequence.id()?;
            if state.wanted.iter().any(|&(other, _)| other == id) {
                return Err(EngineError::parameter("sequence", "is twice in one step"));
            }
            if item.ids.is_empty() {
                return Err(EngineError::parameter("ids", "are empty"));
            }
            if item.guesses > 0
                && (item.guesses >= item.ids.len() || !item.sample || item.logits != Logits::None)
            {
                return Err(EngineError::parameter(
                    "guesses",
                    "must follow another token and need a sampler, and no logits are returned with them",
                ));
            }
            check_ids(item.ids, facts)?;
            let tokens = state.cache.length(id) + item.ids.len();
            if tokens > facts.graph.context_length {
                return Err(EngineError::ContextLength { tokens, limit: facts.graph.context_length });
            }
            state.wanted.push((id, item.ids.len()));
        }
        Ok(())
    }
}

/// Refuses ids that have no embedding.
pub(super) fn check_ids(ids: &[u32], facts: &Facts) -> Result<(), EngineError> {
    match ids.iter().find(|&&id| id as usize >= facts.id_limit) {
        Some(id) => Err(EngineError::parameter(
            "ids",
            format!("token {id} is beyond the model's {} tokens", facts.id_limit),
        )),
        None => Ok(()),
    }
}

impl StepItem<'_> {
    fn check_sampled(&mut self) -> Result<(), EngineError> {
        let output = self.output.get_mut().unwrap_or_else(PoisonError::into_inner);
        match output.failure.take() {
            None => Ok(()),
            Some(SampleError::Kernel(error)) => Err(EngineError::Internal(error.to_string())),
            Some(
                error @ SampleError::Parameter { parameter, .. }
                | error @ SampleError::TokenOutOfRange { parameter, .. },
            ) => Err(EngineError::parameter(parameter, error.to_string())),
            Some(error) => Err(EngineError::Logits(error.to_string())),
        }
    }

    /// Counts the token that was sampled among those that penalties see. Returns how many guesses were wrong.
    fn accept(&mut self) -> usize {
        let output = self.output.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let (Some(sampler), Some(token)) = (&mut output.sampler, output.result.token) {
            sampler.accept(token);
        }
        self.guesses - output.result.accepted
    }

    /// Forgets what the step, which failed, has sampled; `added` tokens are to go.
    fn retract(&mut self, added: usize) -> usize {
        self.output.get_mut().unwrap_or_else(PoisonError::into_inner).retract();
        added
    }

    /// Memory for the logits that were asked for.
    fn reserve(&mut self, vocab: usize) -> Result<(), EngineError> {
        let rows = match self.logits {
            Logits::None => 0,
            Logits::Last => 1,
            Logits::All => self.ids.len(),
        };
        let output = self.output.get_mut().unwrap_or_else(PoisonError::into_inner);
        output.result = StepResult::default();
        output.failure = None;
        // At most 2^16 rows of 2^24 logits: no overflow.
        let (len, logits) = (rows * vocab, &mut output.result.logits);
        logits.try_reserve_exact(len).map_err(|_| EngineError::Memory {
            what: "logits".into(),
            needed: 4 * len as u64,
            available: 0,
        })?;
        logits.resize(len, 0.0);
        Ok(())
    }
}

impl State {
    /// Lays the rows of the items out.
    fn arrange(&mut self, items: &[StepItem<'_>], facts: &Facts, threads: usize) {
        let schedule = &mut self.schedule;
        schedule.clear();
        let vocab = facts.graph.vocab_size;
        for (index, (item, &(id, _))) in items.iter().zip(&self.wanted).enumerate() {
            let first = schedule.ids.len();
            schedule.add(&self.cache, id, item.ids);
            let last = item.ids.len() - 1;
            for token in 0..=last {
                let logits_at = match item.logits {
                    Logits::All => Some(token * vocab),
                    Logits::Last if token == last => Some(0),
                    _ => None,
                };
                let sample = item.sample && token + item.guesses >= last;
                if sample || logits_at.is_some() {
                    schedule.selected.push(Selected { row: first + token, item: index, logits_at, sample });
                }
            }
        }
        schedule.divide(threads);
    }

    pub(super) fn run(
        &mut self,
        items: &[StepItem<'_>],
        facts: &Facts,
        threads: usize,
        clock: Option<&Clock>,
    ) -> Result<(), EngineError> {
        let step = Step {
            plan: &self.plan,
            kernels: facts.kernels,
            arena: self.arena.view(&self.plan),
            cache: &self.cache,
            kv: self.cache.view(),
            schedule: &self.schedule,
            items,
            workers: &self.workers,
            partials: self.partials.view(),
            next: AtomicUsize::new(0),
            shares: &self.shares,
            clock,
        };
        let outcome = step.run(ThreadPool::global(), threads);
        if outcome.is_err() {
            self.partials.reset();
            self.shares.reset();
        }
        outcome
    }
}
