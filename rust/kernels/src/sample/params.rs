//! Sampling parameters and what is wrong with them.

use crate::error::KernelError;

/// Below this temperature sampling is greedy, as in vLLM.
const GREEDY: f32 = 1e-5;

/// How to choose a token. Names and meanings are vLLM's.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingParams {
    /// Divides the logits; 0 takes the most likely token.
    pub temperature: f32,
    /// Keeps the most likely tokens, this many; 0 keeps all.
    pub top_k: u32,
    /// Keeps the fewest tokens that hold this probability together, the most likely ones; in (0, 1].
    pub top_p: f32,
    /// Keeps tokens at least this probable relative to the most likely one; in [0, 1].
    pub min_p: f32,
    /// Divides the positive and multiplies the negative logits of tokens in prompt or output; 1 does nothing.
    pub repetition_penalty: f32,
    /// Subtracted from the logits of tokens in the output; in [-2, 2].
    pub presence_penalty: f32,
    /// Subtracted from the logits of tokens in the output for each occurrence; in [-2, 2].
    pub frequency_penalty: f32,
    /// Added to the logits of single tokens.
    pub logit_bias: Vec<(u32, f32)>,
    /// With the position, the only source of randomness.
    pub seed: u64,
    /// How many of the most likely tokens to report, with log-probabilities; `Some(0)` reports the sampled token's alone.
    pub logprobs: Option<u32>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: 0,
            logprobs: None,
        }
    }
}

impl SamplingParams {
    /// Whether the most likely token is taken.
    pub fn is_greedy(&self) -> bool {
        self.temperature < GREEDY
    }

    /// Checks every parameter.
    ///
    /// # Errors
    /// The first parameter that is out of range.
    pub fn validate(&self) -> Result<(), SampleError> {
        let check = |parameter, value: f32, fits: bool, expected| {
            if fits {
                Ok(())
            } else {
                Err(SampleError::Parameter { parameter, value: value.to_string(), expected })
            }
        };
        let within = |x: f32, low: f32, high: f32| (low..=high).contains(&x);
        let t = self.temperature;
        check("temperature", t, t.is_finite() && t >= 0.0, "a finite number, 0 or more")?;
        check("top_p", self.top_p, within(self.top_p, 0.0, 1.0) && self.top_p > 0.0, "in (0, 1]")?;
        check("min_p", self.min_p, within(self.min_p, 0.0, 1.0), "in [0, 1]")?;
        let r = self.repetition_penalty;
        check("repetition_penalty", r, r.is_finite() && r > 0.0, "a finite number above 0")?;
        check(
            "presence_penalty",
            self.presence_penalty,
            within(self.presence_penalty, -2.0, 2.0),
            "in [-2, 2]",
        )?;
        check(
            "frequency_penalty",
            self.frequency_penalty,
            within(self.frequency_penalty, -2.0, 2.0),
            "in [-2, 2]",
        )?;
        for &(_, bias) in &self.logit_bias {
            check("logit_bias", bias, bias.is_finite(), "finite numbers")?;
        }
        Ok(())
    }
}

/// Why no token could be sampled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SampleError {
    /// A parameter is out of range.
    #[error("{parameter} is {value}, but must be {expected}")]
    Parameter {
        /// Its name.
        parameter: &'static str,
        /// Its value.
        value: String,
        /// What it may be.
        expected: &'static str,
    },
    /// A parameter names a token that the model does not have.
    #[error("{parameter} names token {token}, but the vocabulary has {vocabulary}")]
    TokenOutOfRange {
        /// The parameter's name.
        parameter: &'static str,
        /// The token.
        token: u32,
        /// Number of logits.
        vocabulary: usize,
    },
    /// The model computed NaN.
    #[error("the logit of token {token} is not a number")]
    NotANumber {
        /// The first such token.
        token: usize,
    },
    /// The model computed +infinity.
    #[error("a logit is infinite")]
    Infinite,
    /// Every logit is -infinity.
    #[error("every logit is minus infinity: no token can be chosen")]
    Empty,
    /// A kernel refused its arguments.
    #[error(transparent)]
    Kernel(#[from] KernelError),
}
