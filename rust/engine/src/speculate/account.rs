//! Whether guessing pays for one text: how often guesses of each kind were right, and what they have won and cost so far.

use super::cost::Costs;

/// Kinds of guesses: after matches of 2, 3, 4, 5 to 7 and 8 or more tokens, and by a draft model.
pub(super) const KINDS: usize = 6;
/// The kind of a draft model's guesses.
pub(super) const DRAFT: usize = KINDS - 1;
/// How likely a guess of each kind is thought to be right before any was tried.
const PRIOR: [f64; KINDS] = [0.3, 0.4, 0.5, 0.6, 0.7, 0.6];
/// Tries that the prior counts for.
const PRIOR_TRIES: f64 = 2.0;
/// Tries that are remembered; older ones count half, and half again.
const MEMORY: f64 = 48.0;
/// What a chance not taken leaves of the memory of its kind, so that it is tried again some day.
const FADE: f64 = 0.985;
/// Steps that may be lost before anything is won, and the share of all steps that may be lost in the long run. They bound what guessing
/// can cost on a text where it never helps.
const ALLOWANCE: f64 = 1.0;
const SHARE: f64 = 0.01;
/// What is won early does not pay for long losses later.
const MOST_CREDIT: f64 = 8.0;

/// What one text has learnt.
#[derive(Debug, Clone)]
pub(super) struct Account {
    tried: [f64; KINDS],
    right: [f64; KINDS],
    steps: f64,
    /// Steps won, or lost if negative.
    balance: f64,
    /// Seconds of the draft model for each of its guesses.
    draft_seconds: Option<f64>,
}

/// The batch as it stands when a text decides.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Batch<'a> {
    pub costs: &'a Costs,
    /// Texts that generate in this step.
    pub texts: usize,
    /// Guesses of the texts before this one.
    pub guesses: usize,
}

impl Account {
    pub fn new() -> Self {
        Self { tried: [0.0; KINDS], right: [0.0; KINDS], steps: 0.0, balance: 0.0, draft_seconds: None }
    }

    /// The kind of a match.
    pub fn kind(length: usize) -> usize {
        match length {
            0..=2 => 0,
            3 => 1,
            4 => 2,
            5..=7 => 3,
            _ => 4,
        }
    }

    fn likely(&self, kind: usize) -> f64 {
        (self.right[kind] + PRIOR[kind] * PRIOR_TRIES) / (self.tried[kind] + PRIOR_TRIES)
    }

    /// How many guesses of a kind, at most `most`, promise the most tokens in a second; 0 where none does.
    pub fn worth(&self, kind: usize, most: usize, batch: Batch<'_>) -> usize {
        let texts = batch.texts.max(1) as f64;
        let Some(plain) = batch.costs.plain(batch.texts) else { return 0 };
        if self.balance < -(ALLOWANCE + SHARE * self.steps) {
            return 0;
        }
        let draft = if kind == DRAFT { self.draft_seconds.unwrap_or(0.1 * plain) / plain } else { 0.0 };
        let right = self.likely(kind);
        let rate = |count: usize, gained: f64| {
            (texts + gained) / (batch.costs.ratio(batch.texts, batch.guesses + count) + draft * count as f64)
        };
        let (mut best, mut best_rate) = (0, rate(0, 0.0));
        let (mut chance, mut gained) = (1.0, 0.0);
        for count in 1..=most {
            chance *= right;
            gained += chance;
            let found = rate(count, gained);
            if found > best_rate {
                (best, best_rate) = (count, found);
            }
        }
        best
    }

    /// A chance to guess was not worth taking.
    pub fn pass(&mut self, kind: usize) {
        self.tried[kind] *= FADE;
        self.right[kind] *= FADE;
    }

    /// A step is over, without guesses.
    pub fn step(&mut self) {
        self.steps += 1.0;
    }

    /// A step is over in which `accepted` of `guesses` were right.
    pub fn settle(&mut self, kind: usize, guesses: usize, accepted: usize, batch: Batch<'_>, draft: f64) {
        self.steps += 1.0;
        if guesses == 0 {
            return;
        }
        if self.tried[kind] >= MEMORY {
            self.tried[kind] *= 0.5;
            self.right[kind] *= 0.5;
        }
        // Guesses behind the first wrong one were not put to the test.
        self.tried[kind] += (accepted + 1).min(guesses) as f64;
        self.right[kind] += accepted as f64;
        let share = guesses as f64 / batch.guesses.max(guesses) as f64;
        let mut cost =
            batch.texts as f64 * share * (batch.costs.ratio(batch.texts, batch.guesses.max(guesses)) - 1.0);
        if kind == DRAFT {
            let each = draft / guesses as f64;
            let known = self.draft_seconds.unwrap_or(each);
            self.draft_seconds = Some(known + 0.2 * (each.min(4.0 * known) - known));
            cost += batch.costs.plain(batch.texts).map_or(0.0, |plain| draft / plain);
        }
        self.balance = (self.balance + accepted as f64 - cost).min(MOST_CREDIT);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn costs(slope: f64) -> Costs {
        let mut costs = Costs::default();
        for _ in 0..50 {
            costs.note(1, 0, 1.0);
            for guesses in 1..=8 {
                costs.note(1, guesses, 1.0 + slope * guesses as f64);
            }
        }
        costs
    }

    /// Time of a text of `steps` tokens over that without guesses, if each guess of the kind is right as `right` says.
    fn relative(slope: f64, kind: usize, steps: usize, mut right: impl FnMut() -> bool) -> f64 {
        let costs = costs(slope);
        let mut account = Account::new();
        let (mut tokens, mut time) = (0, 0.0);
        while tokens < steps {
            let guesses = account.worth(kind, 8, Batch { costs: &costs, texts: 1, guesses: 0 });
            let accepted = (0..guesses).take_while(|_| right()).count();
            if guesses == 0 {
                account.pass(kind);
            }
            account.settle(kind, guesses, accepted, Batch { costs: &costs, texts: 1, guesses }, 0.0);
            time += costs.ratio(1, guesses);
            tokens += accepted + 1;
        }
        time / tokens as f64
    }

    #[test]
    fn guesses_that_are_wrong_cost_next_to_nothing() {
        for kind in 0..DRAFT {
            for slope in [0.02, 0.1, 0.5, 1.0] {
                let found = relative(slope, kind, 500, || false);
                assert!(found < 1.02, "kind {kind}, slope {slope}: {found}");
            }
        }
    }

    #[test]
    fn guesses_that_are_right_are_made() {
        assert!(relative(0.1, 4, 500, || true) < 0.25);
        assert!(relative(0.1, 0, 500, || true) < 0.25);
        let mut count = 0;
        let often = relative(0.1, 2, 2000, || {
            count += 1;
            count % 4 != 0
        });
        assert!(often < 0.6, "{often}");
    }

    #[test]
    fn a_text_that_begins_to_repeat_is_noticed() {
        let mut count = 0;
        let found = relative(0.1, 3, 3000, || {
            count += 1;
            count > 60
        });
        assert!(found < 0.5, "{found}");
    }
}
