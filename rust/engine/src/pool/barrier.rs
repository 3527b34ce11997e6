//! The barrier between the phases of a step.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use super::signal::Signal;

/// How long a thread spins for others before it sleeps. Waits between phases of equal shares are a few microseconds. Longer
/// spinning does harm whenever the system has put two threads on one core, which it does as soon as another program runs:
/// who spins then keeps the one that it waits for from running. Two threads on two busy cores decoded 45, 33, 19 and 7 tokens/s
/// with 20, 100, 500 and 2000 µs; on calmer ones 20 µs was no worse than 50.
const SPIN: Duration = Duration::from_micros(20);
/// The same where there are more threads than cores: who spins keeps the one that it waits for from running.
const CROWDED_SPIN: Duration = Duration::from_micros(2);

/// How long the threads of a job of `size` spin on a machine of `cores`.
pub(super) fn spin(size: usize, cores: usize) -> Duration {
    if size > cores { CROWDED_SPIN } else { SPIN }
}

/// Where the threads of a job wait for each other, any number of times.
pub struct Barrier {
    arrived: AtomicUsize,
    generation: Signal,
    stopped: AtomicBool,
    spin: Duration,
}

/// Another thread of the job panicked; this one should return.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stopped;

impl Barrier {
    pub(super) fn new(spin: Duration) -> Self {
        Self {
            arrived: AtomicUsize::new(0),
            generation: Signal::default(),
            stopped: AtomicBool::new(false),
            spin,
        }
    }

    /// Waits for `size` threads. The last to arrive runs `then` while the others wait.
    pub(super) fn wait_then(&self, size: usize, then: impl FnOnce()) -> Result<(), Stopped> {
        // The generation is read before the flag: `stop` sets the flag first, so that one of the two is seen here.
        let generation = self.generation.get();
        if self.stopped.load(Ordering::SeqCst) {
            return Err(Stopped);
        }
        if self.arrived.fetch_add(1, Ordering::AcqRel) + 1 == size {
            then();
            self.arrived.store(0, Ordering::Relaxed);
            self.generation.bump();
        } else {
            self.generation.wait_beyond(generation, self.spin);
        }
        if self.stopped.load(Ordering::SeqCst) { Err(Stopped) } else { Ok(()) }
    }

    /// Releases all who wait, now and later, with [`Stopped`].
    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
        self.generation.bump();
    }
}
