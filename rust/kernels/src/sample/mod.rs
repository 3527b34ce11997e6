//! From a row of logits to a token.
//!
//! Semantics and order are those of vLLM: logit bias, then penalties (repetition over prompt and output; presence and frequency over
//! the output), then, unless greedy, temperature, `min_p`, `top_k`, `top_p`. Log-probabilities are of the raw logits. Equal logits
//! are ordered by id, so `top_k` keeps exactly k tokens. The random number depends on (seed, position) only.

mod candidates;
mod params;
mod penalties;
mod random;

pub use params::{SampleError, SamplingParams};

use crate::error::KernelError;
use crate::kernels::Kernels;
use crate::ops::{LogitStats, MAXIMA_BLOCK, TERMS_BLOCK};
use candidates::{Ranked, top};
use penalties::History;

/// A sampled token.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Sampled {
    /// Its id.
    pub token: u32,
    /// Log-probability of the token under the raw logits; `None` unless [`SamplingParams::logprobs`] is set.
    pub logprob: Option<f32>,
    /// The most likely tokens with their log-probabilities, most likely first.
    pub top: Vec<(u32, f32)>,
}

/// The sampling state of one sequence: parameters, the tokens that penalties count, and working memory.
#[derive(Debug, Clone)]
pub struct Sampler {
    params: SamplingParams,
    history: History,
    adjusted: Vec<f32>,
    maxima: Vec<f32>,
    order: Vec<f32>,
    terms: Vec<f32>,
    sums: Vec<f32>,
    ranked: Ranked,
}

impl Sampler {
    /// Checks the parameters. `prompt` is what the repetition penalty counts beside the output.
    ///
    /// # Errors
    /// When a parameter is out of range.
    pub fn new(params: SamplingParams, prompt: &[u32]) -> Result<Self, SampleError> {
        params.validate()?;
        Ok(Self {
            history: History::new(prompt),
            params,
            adjusted: Vec::new(),
            maxima: Vec::new(),
            order: Vec::new(),
            terms: Vec::new(),
            sums: Vec::new(),
            ranked: Ranked::new(),
        })
    }

    /// The parameters.
    pub fn params(&self) -> &SamplingParams {
        &self.params
    }

    /// Counts a token of the output; [`Sampler::sample`] does not do it.
    pub fn accept(&mut self, token: u32) {
        self.history.accept(token);
    }

    /// Takes a token back that [`Sampler::accept`] counted: of a guess that is not to count yet, or of a step that failed.
    pub fn retract(&mut self, token: u32) {
        self.history.retract(token);
    }

    /// Forgets the output, for example before the sequence is run again.
    pub fn reset(&mut self) {
        self.history.clear_output();
    }

    /// Samples the token at `position` from its logits. Memory is allocated at the first call only, and for the list of
    /// log-probabilities.
    ///
    /// # Errors
    /// When the logits are empty, hold NaN or +infinity, are all -infinity, or a token of the bias is beyond them.
    pub fn sample(
        &mut self,
        kernels: &Kernels,
        logits: &[f32],
        position: u64,
    ) -> Result<Sampled, SampleError> {
        self.reserve(logits.len())?;
        let raw = self.scan(kernels, logits)?;
        let mut result = Sampled::default();
        let normalizer = match self.params.logprobs {
            None => None,
            Some(n) => {
                kernels.logit_terms(logits, raw.max, 1.0, &mut self.terms, &mut self.sums)?;
                let log = f64::from(raw.max) + total(&self.sums).ln();
                top(logits, &self.maxima, n as usize, &mut self.order, &mut self.ranked);
                result.top.extend(self.ranked.iter().map(|(id, x)| (id, (f64::from(x) - log) as f32)));
                Some(log)
            }
        };
        result.token = if self.params.logit_bias.is_empty() && self.history.is_neutral(&self.params) {
            self.choose(kernels, logits, raw, position)?
        } else {
            let mut adjusted = std::mem::take(&mut self.adjusted);
            adjusted.clear();
            adjusted.extend_from_slice(logits);
            let chosen = self.adjust_and_choose(kernels, &mut adjusted, position);
            self.adjusted = adjusted;
            chosen?
        };
        result.logprob = normalizer.map(|log| (f64::from(logits[result.token as usize]) - log) as f32);
        Ok(result)
    }

    fn reserve(&mut self, vocabulary: usize) -> Result<(), SampleError> {
        if vocabulary == 0 || u32::try_from(vocabulary).is_err() {
            return Err(
                KernelError::Range { what: "logits", got: vocabulary, limit: u32::MAX as usize }.into()
            );
        }
        self.maxima.resize(vocabulary.div_ceil(MAXIMA_BLOCK), 0.0);
        self.terms.resize(vocabulary, 0.0);
        self.sums.resize(vocabulary.div_ceil(TERMS_BLOCK), 0.0);
        Ok(())
    }

    /// The table of maxima, and the refusal of logits that have no distribution.
    fn scan(&mut self, kernels: &Kernels, logits: &[f32]) -> Result<LogitStats, SampleError> {
        let stats = kernels.logit_maxima(logits, &mut self.maxima)?;
        if stats.has_nan {
            let token = logits.iter().position(|x| x.is_nan()).unwrap_or(0);
            return Err(SampleError::NotANumber { token });
        }
        match stats.max {
            f32::INFINITY => Err(SampleError::Infinite),
            f32::NEG_INFINITY => Err(SampleError::Empty),
            _ => Ok(stats),
        }
    }

    fn adjust_and_choose(
        &mut self,
        kernels: &Kernels,
        logits: &mut [f32],
        position: u64,
    ) -> Result<u32, SampleError> {
        for &(token, bias) in &self.params.logit_bias {
            let vocabulary = logits.len();
            let x = logits.get_mut(token as usize).ok_or(SampleError::TokenOutOfRange {
                parameter: "logit_bias",
                token,
                vocabulary,
            })?;
            *x += bias;
        }
        self.history.penalize(&self.params, logits);
        // The raw logits had a distribution: what has none now, the penalty has driven beyond the floats.
        let stats = self.scan(kernels, logits).map_err(|_| SampleError::Parameter {
            parameter: "repetition_penalty",
            value: self.params.repetition_penalty.to_string(),
            expected: "a number that leaves logits finite",
        })?;
        self.choose(kernels, logits, stats, position)
    }

    /// Temperature and what follows it. The table of maxima is that of `logits`.
    fn choose(
        &mut self,
        kernels: &Kernels,
        logits: &[f32],
        stats: LogitStats,
        position: u64,
    ) -> Result<u32, SampleError> {
        let p = &self.params;
        if p.is_greedy() {
            top(logits, &self.maxima, 1, &mut self.order, &mut self.ranked);
            return Ok(self.ranked.iter().next().map_or(0, |(id, _)| id));
        }
        let random = random::uniform(p.seed, position);
        let all = logits.len();
        let k = if p.top_k == 0 { all } else { all.min(p.top_k as usize) };
        kernels.logit_terms(logits, stats.max, p.temperature, &mut self.terms, &mut self.sums)?;
        if k == all && p.top_p >= 1.0 && p.min_p <= 0.0 {
            return Ok(walk_all(&self.terms, &self.sums, random));
        }
        // The probability, relative to the most likely token's, that is 1 in all.
        let whole = if k < all {
            None
        } else if p.min_p > 0.0 {
            Some(self.terms.iter().filter(|&&t| t >= p.min_p).map(|&t| f64::from(t)).sum::<f64>())
        } else {
            Some(total(&self.sums))
        };
        // Without `top_k` the number of tokens needed is unknown: look at more until they hold enough probability.
        let mut count = if k < all { k } else { 64.min(all) };
        loop {
            top(logits, &self.maxima, count, &mut self.order, &mut self.ranked);
            let kept = self.ranked.ids().iter().take_while(|&&id| self.terms[id as usize] >= p.min_p).count();
            let complete = count == k || kept < count;
            let ids = &self.ranked.ids()[..kept];
            let weight = |id: &u32| f64::from(self.terms[*id as usize]);
            let whole = whole.unwrap_or_else(|| ids.iter().map(weight).sum());
            let wanted = if p.top_p >= 1.0 { f64::INFINITY } else { f64::from(p.top_p) * whole };
            let (mut held, mut nucleus) = (0.0, 0);
            for id in ids {
                if nucleus > 0 && held >= wanted {
                    break;
                }
                held += weight(id);
                nucleus += 1;
            }
            if complete || held >= wanted {
                return Ok(walk(&ids[..nucleus], weight, random * held));
            }
            count = k.min(count.saturating_mul(8));
        }
    }
}

fn total(sums: &[f32]) -> f64 {
    sums.iter().map(|&s| f64::from(s)).sum()
}

/// The token in whose interval `target` lies, when tokens follow each other in the order given.
fn walk(ids: &[u32], weight: impl Fn(&u32) -> f64, target: f64) -> u32 {
    let mut held = 0.0;
    for id in ids {
        held += weight(id);
        if target < held {
            return *id;
        }
    }
    // Only rounding leads here; tokens of no weight are never chosen.
    ids.iter().rfind(|id| weight(id) > 0.0).copied().unwrap_or(0)
}

/// The same over the whole vocabulary in order of id, by way of the sums of blocks.
fn walk_all(terms: &[f32], sums: &[f32], random: f64) -> u32 {
    let target = random * total(sums);
    let mut held = 0.0;
    let mut last = 0;
    for (block, &sum) in sums.iter().enumerate() {
        if sum > 0.0 {
            last = block;
            if target < held + f64::from(sum) {
                break;
            }
            held += f64::from(sum);
        }
    }
    // Within a block the terms are summed anew, so that rounding cannot lead out of it.
    let start = last * TERMS_BLOCK;
    let terms = &terms[start..terms.len().min(start + TERMS_BLOCK)];
    let mut chosen = 0;
    for (i, &term) in terms.iter().enumerate() {
        if term > 0.0 {
            chosen = i;
            held += f64::from(term);
            if target < held {
                break;
            }
        }
    }
    (start + chosen) as u32
}
