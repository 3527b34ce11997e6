//! Where the time of a step goes, phase by phase.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Divides the time of a step among its phases: each mark gives what passed since the mark before to one of them, so that the parts
/// add up to the whole.
///
/// Phases end where the last worker arrives at their barrier; that worker marks, so nobody waits for the lock.
pub(crate) struct Clock {
    state: Mutex<State>,
}

struct State {
    last: Instant,
    /// One for each phase, and one for what is in none: checks, the dispatch, the return.
    spent: Vec<Duration>,
}

impl Clock {
    /// A clock for a plan of so many phases, running since `start`.
    pub fn new(phases: usize, start: Instant) -> Self {
        Self { state: Mutex::new(State { last: start, spent: vec![Duration::ZERO; phases + 1] }) }
    }

    /// What passed since the last mark was `phase`; `None` is none of them.
    pub fn mark(&self, phase: Option<usize>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (now, none) = (Instant::now(), state.spent.len() - 1);
        let passed = now.saturating_duration_since(state.last);
        state.spent[phase.unwrap_or(none)] += passed;
        state.last = now;
    }

    /// Time of each phase, then of what is in none.
    pub fn into_times(self) -> Vec<Duration> {
        self.state.into_inner().unwrap_or_else(PoisonError::into_inner).spent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_add_up_to_the_whole() {
        let start = Instant::now();
        let clock = Clock::new(2, start);
        clock.mark(None);
        clock.mark(Some(1));
        clock.mark(Some(1));
        clock.mark(None);
        let end = clock.state.lock().unwrap().last;
        let times = clock.into_times();
        assert_eq!((times.len(), times[0]), (3, Duration::ZERO));
        assert_eq!(times.iter().sum::<Duration>(), end - start);
    }
}
