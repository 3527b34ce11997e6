//! The workers: threads that wait for a job, run it, and report.

use std::cell::UnsafeCell;
use std::mem::transmute;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use super::barrier::Barrier;
use super::signal::Signal;
use super::{Outcome, Team, run_member};

/// How long a worker spins after a job before it sleeps: about what a caller needs between two tokens. Ten times as much gained
/// nothing, and would keep a caller on the same core from its own work.
const LINGER: Duration = Duration::from_micros(100);

type Function = dyn Fn(&Team<'_>) + Sync;

/// A job as the workers see it: references whose lifetimes the dispatch guards.
#[derive(Clone, Copy)]
pub(super) struct Job {
    function: &'static Function,
    barrier: &'static Barrier,
    size: usize,
}

impl Job {
    /// The references are good only until the [`Crew::dispatch`] that gets this job returns, and go nowhere else.
    pub fn new<'a>(function: &'a (dyn Fn(&Team<'_>) + Sync + 'a), barrier: &'a Barrier, size: usize) -> Self {
        // SAFETY: only the lifetimes change. Workers use the references between the start of `dispatch` and their report,
        // and `dispatch`, which borrows this job, returns after all reports; a job is made only to be dispatched.
        let (function, barrier) = unsafe {
            (
                transmute::<&'a (dyn Fn(&Team<'_>) + Sync + 'a), &'static Function>(function),
                transmute::<&'a Barrier, &'static Barrier>(barrier),
            )
        };
        Self { function, barrier, size }
    }
}

/// What the threads of one crew share.
#[derive(Default)]
struct Shared {
    /// Workers that have not reported yet.
    pending: AtomicUsize,
    /// Changes when the last has.
    done: Signal,
    failure: Mutex<Option<String>>,
    quit: AtomicBool,
}

/// One worker's letter box.
#[derive(Default)]
struct Slot {
    /// Changes when `job` holds a new one.
    posted: Signal,
    job: UnsafeCell<Option<Job>>,
}

// SAFETY: `job` is written by the dispatcher only while its worker waits for `posted` to change, and read by the worker only
// after that change and before it reports; `Signal` orders the two.
unsafe impl Sync for Slot {}

/// The workers of a pool, in order of their start.
#[derive(Default)]
pub(super) struct Crew {
    shared: Arc<Shared>,
    workers: Vec<(Arc<Slot>, JoinHandle<()>)>,
}

impl Crew {
    /// Sees to it that there are `count` workers and returns how many of those there are.
    pub fn grow(&mut self, count: usize) -> usize {
        while self.workers.len() < count {
            let slot = Arc::new(Slot::default());
            let (shared, own) = (Arc::clone(&self.shared), Arc::clone(&slot));
            let index = self.workers.len() + 1;
            match Builder::new().name(format!("pocketlm-{index}")).spawn(move || work(&shared, &own, index)) {
                Ok(handle) => self.workers.push((slot, handle)),
                Err(_) => break,
            }
        }
        self.workers.len().min(count)
    }

    /// Runs `job` on the first `size - 1` workers and `own` here, and returns when all have ended; waits spinning at first.
    pub fn dispatch(&mut self, job: &Job, spin: Duration, own: impl FnOnce() -> Outcome) -> Outcome {
        let members = &self.workers[..job.size - 1];
        if members.is_empty() {
            // The system refused every thread: nobody would report.
            return own();
        }
        self.shared.pending.store(members.len(), Ordering::Release);
        let before = self.shared.done.get();
        for (slot, _) in members {
            // SAFETY: this worker has reported its last job and waits; see `Slot`.
            unsafe { *slot.job.get() = Some(*job) };
            slot.posted.bump();
        }
        // `own` catches panics, so that this function never unwinds while workers hold the job.
        let outcome = own();
        self.shared.done.wait_beyond(before, spin);
        let failure = self.shared.failure.lock().unwrap_or_else(PoisonError::into_inner).take();
        outcome.and(failure.map_or(Ok(()), Err))
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        self.shared.quit.store(true, Ordering::SeqCst);
        for (slot, handle) in self.workers.drain(..) {
            slot.posted.bump();
            // A worker cannot panic outside a job, and there is nobody to tell if it did.
            let _ = handle.join();
        }
    }
}

fn work(shared: &Shared, slot: &Slot, index: usize) {
    let mut seen = 0;
    loop {
        slot.posted.wait_beyond(seen, LINGER);
        seen = seen.wrapping_add(1);
        if shared.quit.load(Ordering::SeqCst) {
            return;
        }
        // SAFETY: `posted` changed, so the job was written before and is not touched until the report below; see `Slot`.
        let Some(job) = (unsafe { (*slot.job.get()).take() }) else {
            continue;
        };
        let team = Team { index, size: job.size, barrier: job.barrier };
        if let Err(text) = run_member(job.function, &team) {
            shared.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(text);
        }
        // The last touch of this job; after it the references may dangle.
        if shared.pending.fetch_sub(1, Ordering::AcqRel) == 1 {
            shared.done.bump();
        }
    }
}
