//! The engine's state behind its lock: one holder at a time, no waiting for threads that a fork left behind.

use std::process;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, MutexGuard, TryLockError};
use std::thread;
use std::time::{Duration, Instant};

use super::State;
use super::facts::Facts;
use crate::error::EngineError;
use crate::kv::SequenceId;

/// How long a process waits that never held the state, for one of its threads to say that it does.
const PATIENCE: Duration = Duration::from_secs(1);

/// What the engine and its sequences share.
pub(super) struct Inner {
    state: Mutex<Guarded>,
    /// The process that held `state` last, or made it.
    pub process: AtomicU32,
    /// Takes sequences that are dropped while a step runs. Sending never waits for another thread.
    dropped: Sender<SequenceId>,
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
pub(super) struct Locked<'a>(MutexGuard<'a, Guarded>);

impl Locked<'_> {
    /// Gives the memory of the state back.
    pub fn close(&mut self) {
        self.0.state = None;
    }

    pub fn state(&mut self) -> Result<&mut State, EngineError> {
        self.0.state.as_mut().ok_or_else(|| EngineError::parameter("engine", "is closed"))
    }
}

impl Inner {
    pub fn new(state: State, facts: Facts) -> Self {
        let (dropped, receiver) = channel();
        let state = Mutex::new(Guarded { state: Some(state), dropped: receiver });
        Self {
            state,
            process: AtomicU32::new(process::id()),
            dropped,
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
            Err(TryLockError::WouldBlock) => self.wait()?,
            Err(TryLockError::Poisoned(_)) => return Err(broken()),
        };
        Ok(self.held(guard))
    }

    /// Waits for the holder. In a forked child that may be a thread which did not come along, so that waiting would never end; once a thread of
    /// the child has held the state, all later holders are the child's too.
    fn wait(&self) -> Result<MutexGuard<'_, Guarded>, EngineError> {
        let begun = Instant::now();
        while self.process.load(Ordering::Acquire) != process::id() {
            match self.state.try_lock() {
                Ok(guard) => return Ok(guard),
                Err(TryLockError::Poisoned(_)) => return Err(broken()),
                Err(TryLockError::WouldBlock) if begun.elapsed() < PATIENCE => {
                    // A thread of this process may be about to say that it holds the state.
                    thread::sleep(Duration::from_millis(1));
                }
                Err(TryLockError::WouldBlock) => {
                    return Err(EngineError::Internal(
                        "the process was forked while a step ran in this engine".into(),
                    ));
                }
            }
        }
        self.state.lock().map_err(|_| broken())
    }

    /// The state if no step runs.
    pub fn try_lock(&self) -> Option<Locked<'_>> {
        self.state.try_lock().ok().map(|guard| self.held(guard))
    }

    fn held<'a>(&self, guard: MutexGuard<'a, Guarded>) -> Locked<'a> {
        self.process.store(process::id(), Ordering::Release);
        let mut locked = Locked(guard);
        let Guarded { state, dropped } = &mut *locked.0;
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
