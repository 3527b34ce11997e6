//! A counter that threads wait on: spinning for a bounded time, then asleep.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A counter whose every change wakes all who wait for it.
///
/// The sleeping path is the one of Dekker's algorithm: the waiter announces itself, then looks at the value; the changer
/// changes the value, then looks for waiters. Under sequential consistency one of them sees the other, and the mutex
/// keeps a waiter from missing the notice between its look and its sleep.
#[derive(Default)]
#[repr(align(128))]
pub(super) struct Signal {
    value: AtomicU32,
    sleepers: AtomicU32,
    lock: Mutex<()>,
    changed: Condvar,
}

/// Looks at the clock this rarely: reading it costs as much as many a look at the value.
const SPINS_PER_LOOK: u32 = 32;

impl Signal {
    pub fn get(&self) -> u32 {
        self.value.load(Ordering::SeqCst)
    }

    /// Changes the value and wakes the waiters. Everything done before is visible to them.
    pub fn bump(&self) {
        self.value.fetch_add(1, Ordering::SeqCst);
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            drop(self.lock.lock().unwrap_or_else(PoisonError::into_inner));
            self.changed.notify_all();
        }
    }

    /// Returns once the value is no longer `old`, having spun for at most `spin` and slept for the rest.
    pub fn wait_beyond(&self, old: u32, spin: Duration) {
        if self.spin(old, spin) {
            return;
        }
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        let mut guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        while self.value.load(Ordering::SeqCst) == old {
            guard = self.changed.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        drop(guard);
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
    }

    fn spin(&self, old: u32, limit: Duration) -> bool {
        let mut started = None;
        loop {
            for _ in 0..SPINS_PER_LOOK {
                if self.value.load(Ordering::Acquire) != old {
                    return true;
                }
                std::hint::spin_loop();
            }
            if started.get_or_insert_with(Instant::now).elapsed() >= limit {
                return false;
            }
        }
    }
}
