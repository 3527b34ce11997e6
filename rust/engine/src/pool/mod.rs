//! The thread pool: one per process, started when first used, silent when idle.
//!
//! A step of the engine is one dispatch: the calling thread and N - 1 parked workers walk the same list of phases, with a
//! [`Barrier`] between them. Waiting is bounded spinning, then sleep in a condition variable (a futex on Linux). std's
//! own primitives serve because the slow path is not where time goes: a phase that keeps a worker waiting for longer than
//! the spin has lost more than a wake-up costs.

mod bandwidth;
mod barrier;
mod cpus;
mod peak;
mod signal;
mod worker;

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

pub use bandwidth::{read_bandwidth, read_bandwidth_of};
pub use barrier::{Barrier, Stopped};
pub use cpus::{cpu_count, is_fixed, thread_count};
pub use peak::int8_peak;
use worker::{Crew, Job};

use crate::error::EngineError;

/// No machine of this kind gains from more, and a typing error must not start thousands of threads.
pub const MAX_THREADS: usize = 256;

thread_local! {
    /// Set while this thread runs a job, so that a nested dispatch runs in place instead of waiting for itself.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// A set of parked threads that run one job at a time.
pub struct ThreadPool {
    /// Serialises dispatches and owns the workers.
    crew: Mutex<Crew>,
    /// The process that started the workers; a forked child has none of them.
    process: u32,
    /// Cores that the threads can have.
    cores: usize,
}

/// One thread's place in a running job.
pub struct Team<'a> {
    index: usize,
    size: usize,
    barrier: &'a Barrier,
}

impl Team<'_> {
    /// This thread's number, `0..size`; 0 is the thread that called [`ThreadPool::run`].
    pub fn index(&self) -> usize {
        self.index
    }

    /// Threads that run the job.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Waits for all threads of the job; the last to arrive runs `then` before any goes on.
    ///
    /// # Errors
    /// [`Stopped`] if another thread of the job panicked: return from the job.
    pub fn wait_then(&self, then: impl FnOnce()) -> Result<(), Stopped> {
        self.barrier.wait_then(self.size, then)
    }

    /// Waits for all threads of the job.
    ///
    /// # Errors
    /// [`Stopped`] if another thread of the job panicked: return from the job.
    pub fn wait(&self) -> Result<(), Stopped> {
        self.wait_then(|| ())
    }
}

impl Default for ThreadPool {
    fn default() -> Self {
        Self::new()
    }
}

impl ThreadPool {
    /// A pool without threads yet; they start with the first job that needs them.
    pub fn new() -> Self {
        Self { crew: Mutex::new(Crew::default()), process: std::process::id(), cores: cpu_count() }
    }

    /// The pool of this process. After a `fork` the child gets a new one: its parent's workers did not come along, and
    /// its parent's locks may be held by threads that did not either, so the old pool is left alone, not freed.
    pub fn global() -> &'static Self {
        static POOL: AtomicPtr<ThreadPool> = AtomicPtr::new(std::ptr::null_mut());
        let mut current = POOL.load(Ordering::Acquire);
        loop {
            // SAFETY: the pointer is null or came from `Box::into_raw` below, and no pool put here is ever freed.
            if let Some(pool) = unsafe { current.as_ref() }
                && pool.process == std::process::id()
            {
                return pool;
            }
            let fresh = Box::into_raw(Box::new(Self::new()));
            match POOL.compare_exchange(current, fresh, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => current = fresh,
                Err(winner) => {
                    // SAFETY: `fresh` was made above and never shared. It has no threads yet.
                    drop(unsafe { Box::from_raw(fresh) });
                    current = winner;
                }
            }
        }
    }

    /// Runs `job` once on each of `threads` threads, the calling one among them, and waits for all. Jobs of several
    /// callers run one after another; a job started from inside a job runs on the calling thread alone. Should the system
    /// refuse a thread, the job runs on those there are: `Team::size` tells.
    ///
    /// # Errors
    /// [`EngineError::Internal`] with the message of a panic in `job`; the pool stays usable.
    pub fn run(&self, threads: usize, job: impl Fn(&Team<'_>) + Sync) -> Result<(), EngineError> {
        let spin = barrier::spin(threads, self.cores);
        let barrier = Barrier::new(spin);
        if INSIDE.get() || threads <= 1 {
            return report(run_member(&job, &Team { index: 0, size: 1, barrier: &barrier }));
        }
        let mut crew = self.lock();
        let size = crew.grow(threads.min(MAX_THREADS) - 1) + 1;
        let outcome = crew.dispatch(&Job::new(&job, &barrier, size), spin, || {
            run_member(&job, &Team { index: 0, size, barrier: &barrier })
        });
        report(outcome)
    }

    fn lock(&self) -> MutexGuard<'_, Crew> {
        // A panic never leaves the crew half-changed: jobs' panics are caught before they reach it.
        self.crew.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The message of a panic, if there was one.
type Outcome = Result<(), String>;

/// Runs the job as one member; a panic stops the others at their next barrier.
fn run_member(job: &(dyn Fn(&Team<'_>) + Sync), team: &Team<'_>) -> Outcome {
    let outer = INSIDE.replace(true);
    let outcome = catch_unwind(AssertUnwindSafe(|| job(team)));
    INSIDE.set(outer);
    outcome.map_err(|payload| {
        team.barrier.stop();
        let text = message(payload.as_ref());
        // Whose drop may panic in turn, when workers still hold what lies on this stack.
        std::mem::forget(payload);
        text
    })
}

fn message(payload: &(dyn Any + Send)) -> String {
    match (payload.downcast_ref::<&str>(), payload.downcast_ref::<String>()) {
        (Some(text), _) => (*text).to_owned(),
        (_, Some(text)) => text.clone(),
        _ => "panic without a message".to_owned(),
    }
}

fn report(outcome: Outcome) -> Result<(), EngineError> {
    outcome.map_err(|text| EngineError::Internal(format!("a worker failed: {text}")))
}
