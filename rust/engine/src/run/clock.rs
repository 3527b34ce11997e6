//! Where the time of a step goes, phase by phase.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Divides the time of a step among its phases, so that the parts add up to the whole.
///
/// Each thread notes for itself when it is done with a phase, in memory that no other touches, so that no record has to go from
/// core to core between two phases. A phase ends when the last thread is done with it.
pub(crate) struct Clock {
    phases: usize,
    start: Instant,
    threads: Vec<Marks>,
}

/// What a thread notes, apart from other threads' cache lines.
#[repr(align(128))]
struct Marks(Mutex<Vec<(usize, Instant)>>);

impl Clock {
    /// A clock for a plan of so many phases on so many threads, running since `start`.
    pub fn new(phases: usize, threads: usize, start: Instant) -> Self {
        let marks = || Marks(Mutex::new(Vec::with_capacity(2 * phases + 1)));
        Self { phases, start, threads: (0..threads).map(|_| marks()).collect() }
    }

    /// The threads have begun; called by one of them.
    pub fn begin(&self, thread: usize) {
        self.note(thread, 0);
    }

    /// A thread is done with a phase in a pass through the plan, of which it may make several.
    pub fn mark(&self, thread: usize, pass: usize, phase: usize) {
        self.note(thread, 1 + pass * self.phases + phase);
    }

    fn note(&self, thread: usize, place: usize) {
        let mut marks = self.threads[thread].0.lock().unwrap_or_else(PoisonError::into_inner);
        marks.push((place, Instant::now()));
    }

    /// Time of each phase, then of what is in none (checks, the dispatch, the return), of a step that ended at `end`.
    pub fn into_times(self, end: Instant) -> Vec<Duration> {
        let marks = self.threads.into_iter();
        let mut marks: Vec<(usize, Instant)> =
            marks.flat_map(|marks| marks.0.into_inner().unwrap_or_else(PoisonError::into_inner)).collect();
        // Threads go through passes and phases in order.
        marks.sort_unstable();
        let mut spent = vec![Duration::ZERO; self.phases + 1];
        let mut last = self.start;
        for (place, at) in marks {
            let phase = place.checked_sub(1).map_or(self.phases, |place| place % self.phases);
            spent[phase] += at.saturating_duration_since(last);
            last = last.max(at);
        }
        spent[self.phases] += end.saturating_duration_since(last);
        spent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_add_up_to_the_whole() {
        let start = Instant::now();
        let clock = Clock::new(2, 1, start);
        clock.begin(0);
        for pass in 0..2 {
            clock.mark(0, pass, 1);
        }
        let end = Instant::now();
        let times = clock.into_times(end);
        assert_eq!((times.len(), times[0]), (3, Duration::ZERO));
        assert_eq!(times.iter().sum::<Duration>(), end - start);
    }

    #[test]
    fn a_phase_ends_with_its_last_thread() {
        let start = Instant::now();
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        let clock = Clock::new(3, 2, start);
        let marks = |thread: usize, found: &[(usize, u64)]| {
            let found = found.iter().map(|&(place, milliseconds)| (place, at(milliseconds)));
            *clock.threads[thread].0.lock().unwrap() = found.collect();
        };
        // Phase 1 is done by the last thread to arrive alone; the second pass has phase 2 only.
        marks(0, &[(0, 1), (1, 5), (3, 20), (6, 21)]);
        marks(1, &[(1, 8), (2, 9), (3, 12), (6, 25)]);
        let times: Vec<u128> = clock.into_times(at(27)).iter().map(Duration::as_millis).collect();
        assert_eq!(times, [7, 1, 11 + 5, 1 + 2]);
    }
}
