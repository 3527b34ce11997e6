//! The engine's state behind its lock: one holder at a time, no waiting for threads that a fork left behind.

use std::process;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, MutexGuard, TryLockError};

use super::State;
use super::facts::Facts;
use crate::error::EngineError;
use crate::kv::SequenceId;
use crate::speculate::Costs;

/// What the engine and its sequences share.
pub(super) struct Inner {
    state: Mutex<Guarded>,
    /// The process that holds `state`, 0 if none does.
    holder: AtomicU32,
    /// Takes sequences that are dropped while a step runs. Sending never waits for another thread.
    dropped: Sender<SequenceId>,
    /// Times of steps, from which follows what guesses cost.
    pub costs: Mutex<Costs>,
    /// A `write` that runs is to return.
    pub interrupted: AtomicBool,
    pub facts: Facts,
}

/// What the lock guards.
struct Guarded {
    /// None once the engine is closed.
    state: Option<State>,
    /// Sequences dropped while a step ran.
    dropped: Receiver<SequenceId>,
}

/// The state while this thread holds it.
pub(super) struct Locked<'a> {
    guard: MutexGuard<'a, Guarded>,
    holder: &'a AtomicU32,
}

impl Locked<'_> {
    /// Gives the memory of the state back.
    pub fn close(&mut self) {
        self.guard.state = None;
    }

    pub fn state(&mut self) -> Result<&mut State, EngineError> {
        self.guard.state.as_mut().ok_or_else(|| EngineError::parameter("engine", "is closed"))
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        self.holder.store(0, Ordering::Release);
    }
}

impl Inner {
    pub fn new(state: State, facts: Facts) -> Self {
        let (dropped, receiver) = channel();
        let state = Mutex::new(Guarded { state: Some(state), dropped: receiver });
        Self {
            state,
            holder: AtomicU32::new(0),
            dropped,
            costs: Mutex::default(),
            interrupted: AtomicBool::new(false),
            facts,
        }
    }

    /// Gives the blocks of a sequence back, now or, where a step runs, to the next holder of the state. Never waits.
    pub fn release(&self, id: SequenceId) {
        match self.try_lock() {
            Some(mut locked) => {
                if let Ok(state) = locked.state() {
                    state.cache.free(id);
                }
            }
            // Without a receiver there is no state either.
            None => drop(self.dropped.send(id)),
        }
    }

    /// Waits for the running step, if there is one.
    pub fn lock(&self) -> Result<Locked<'_>, EngineError> {
        let guard = match self.state.try_lock() {
            Ok(guard) => guard,
            Err(TryLockError::WouldBlock) => {
                // In a forked child the thread that holds the lock may not exist, so that waiting would never end.
                let holder = self.holder.load(Ordering::Acquire);
                if holder != 0 && holder != process::id() {
                    return Err(EngineError::Internal(
                        "the process was forked while a step ran in this engine".into(),
                    ));
                }
                self.state.lock().map_err(|_| broken())?
            }
            Err(TryLockError::Poisoned(_)) => return Err(broken()),
        };
        Ok(self.held(guard))
    }

    /// The state if no step runs.
    fn try_lock(&self) -> Option<Locked<'_>> {
        self.state.try_lock().ok().map(|guard| self.held(guard))
    }

    fn held<'a>(&'a self, guard: MutexGuard<'a, Guarded>) -> Locked<'a> {
        self.holder.store(process::id(), Ordering::Release);
        let mut locked = Locked { guard, holder: &self.holder };
        let Guarded { state, dropped } = &mut *locked.guard;
        for id in dropped.try_iter() {
            if let Some(state) = state {
                state.cache.free(id);
            }
        }
        locked
    }
}

fn broken() -> EngineError {
    EngineError::Internal("an earlier failure left this engine unusable".into())
}
