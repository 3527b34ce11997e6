//! Several tokens in one step: guesses at what comes next, which the step that computes them proves or refutes.
//!
//! A sampler is deterministic given logits, position, seed and what came before. So each guess is compared with the token that the sampler
//! chooses in its place, and the text is the same with and without guesses, sampled or not.

mod account;
mod cost;
mod lookup;

pub(crate) use account::Batch;
use account::{Account, DRAFT};
pub(crate) use cost::Costs;
use lookup::Lookup;

/// Guesses in a step at most.
pub const MAX_GUESSES: usize = 16;

/// What one request goes on to write: when it ends, and what is guessed of it.
#[derive(Debug)]
pub struct Continuation {
    stops: Vec<u32>,
    left: usize,
    ended: bool,
    most: usize,
    lookup: Option<Lookup>,
    account: Account,
    drafted: Vec<u32>,
    draft_seconds: f64,
    /// Kind and number of the guesses of the running step.
    made: Option<(usize, usize)>,
    proposed: u64,
    accepted: u64,
}

impl Continuation {
    /// A text that follows `prompt` and ends with one of `stops` or after `tokens` tokens. At most `guesses` (no more than
    /// [`MAX_GUESSES`]) are made in a step; 0 makes none.
    pub fn new(prompt: &[u32], tokens: usize, stops: &[u32], guesses: usize) -> Self {
        let most = guesses.min(MAX_GUESSES);
        Self {
            stops: stops.to_vec(),
            left: tokens,
            ended: false,
            most,
            lookup: (most > 0).then(|| Lookup::new(prompt)),
            account: Account::new(),
            drafted: Vec::new(),
            draft_seconds: 0.0,
            made: None,
            proposed: 0,
            accepted: 0,
        }
    }

    /// Reserves memory for the tokens that so many steps may write, of which there is room for `room` at most, and returns how many
    /// they are: steps then allocate nothing.
    pub(crate) fn reserve(&mut self, steps: usize, room: usize) -> usize {
        let tokens = steps.saturating_mul(1 + self.most).min(self.left).min(room).max(1);
        if let Some(lookup) = &mut self.lookup {
            lookup.reserve(tokens);
        }
        tokens
    }

    /// Tokens that end the text.
    pub fn stops(&self) -> &[u32] {
        &self.stops
    }

    /// Whether nothing more is to come.
    pub fn ended(&self) -> bool {
        self.ended
    }

    /// Guesses that were computed, and those of them that were right.
    pub fn counts(&self) -> (u64, u64) {
        (self.proposed, self.accepted)
    }

    /// How many tokens a draft model should guess next.
    pub(crate) fn drafts(&self, batch: Batch<'_>) -> usize {
        let found = self.lookup.as_ref().and_then(Lookup::find);
        let most = self.room();
        // A long match is right as often as a model, and costs nothing.
        if found.is_some_and(|found| {
            found.length >= 5 && self.account.worth(Account::kind(found.length), most, batch) > 0
        }) {
            return 0;
        }
        self.account.worth(DRAFT, most, batch)
    }

    /// Guesses by a draft model, which took so long for them.
    pub fn draft(&mut self, tokens: &[u32], seconds: f64) {
        self.drafted.clear();
        self.drafted.extend_from_slice(tokens);
        self.draft_seconds = seconds;
    }

    /// A chance to use the draft model was not worth taking.
    pub fn pass_draft(&mut self) {
        self.account.pass(DRAFT);
    }

    /// Guesses make no sense beyond the last token but one: the last is not computed further.
    fn room(&self) -> usize {
        self.most.min(self.left.saturating_sub(1))
    }

    /// Appends guesses, at most `rows`; returns how many.
    pub(crate) fn guess(&mut self, rows: usize, batch: Batch<'_>, ids: &mut Vec<u32>) -> usize {
        let before = ids.len();
        let most = self.room().min(rows);
        self.made = None;
        if !self.drafted.is_empty() {
            self.drafted.truncate(most);
            ids.append(&mut self.drafted);
            self.made = Some((DRAFT, ids.len() - before));
        } else if let Some((lookup, found)) = self.lookup.as_ref().and_then(|l| Some((l, l.find()?))) {
            let kind = Account::kind(found.length);
            match self.account.worth(kind, most, batch) {
                0 => self.account.pass(kind),
                count => {
                    lookup.guess(found, count, ids);
                    self.made = Some((kind, count));
                }
            }
        }
        ids.len() - before
    }

    /// Takes the tokens that a step has found: guesses that were right, and one more.
    pub(crate) fn take(&mut self, tokens: &[u32], batch: Batch<'_>) {
        let accepted = tokens.len().saturating_sub(1);
        if let Some((kind, guesses)) = self.made.take() {
            self.account.settle(kind, guesses, accepted, batch, self.draft_seconds);
            self.proposed += guesses as u64;
            self.accepted += accepted as u64;
        } else {
            self.account.step();
        }
        self.draft_seconds = 0.0;
        self.left = self.left.saturating_sub(tokens.len());
        self.ended = self.left == 0 || tokens.last().is_some_and(|token| self.stops.contains(token));
        if let Some(lookup) = &mut self.lookup {
            tokens.iter().for_each(|&token| lookup.push(token));
        }
    }
}
