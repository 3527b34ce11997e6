//! Sequences against the engine's lock.

use std::sync::Barrier;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use pocketlm_kernels::Kind;

use crate::EngineError;
use crate::common::{Made, all_logits, llama, options};
use crate::speculate::Continuation;

#[test]
fn sequences_dropped_at_once_while_a_step_runs_give_their_blocks_back() {
    const THREADS: usize = 4;
    const EACH: usize = 1_000;
    let engine = llama(Made::Palette(Kind::P4), 1).engine(&options(1));
    let trunk = engine.sequence().unwrap();
    all_logits(&engine, &trunk, &[1]);
    // All share one block, which is free only when the last of them is.
    let forks: Vec<_> =
        (0..THREADS).map(|_| (0..EACH).map(|_| trunk.fork().unwrap()).collect::<Vec<_>>()).collect();
    assert_eq!(engine.cache_tokens_free(), Ok(engine.cache_tokens() - 64));
    let running = engine.inner.lock().unwrap();
    let start = Barrier::new(THREADS);
    std::thread::scope(|scope| {
        for mine in forks {
            let start = &start;
            scope.spawn(move || {
                start.wait();
                drop(mine);
            });
        }
    });
    drop((running, trunk));
    assert_eq!(engine.cache_tokens_free(), Ok(engine.cache_tokens()));
}

#[test]
fn a_child_does_not_wait_for_a_thread_that_stayed_behind() {
    let engine = llama(Made::Palette(Kind::P4), 1).engine(&options(1));
    let running = engine.inner.lock().unwrap();
    // As a child finds it: the lock is held, by a thread of another process.
    engine.inner.process.store(0, Ordering::Release);
    let failure = thread::scope(|scope| scope.spawn(|| engine.cache_tokens_free()).join().unwrap());
    assert!(matches!(&failure, Err(EngineError::Internal(what)) if what.contains("forked")), "{failure:?}");
    // Neither do guesses, which only matter for speed.
    let continuation = Continuation::new(&[1], 9, &[], 4);
    thread::scope(|scope| {
        scope.spawn(|| assert_eq!(engine.drafts(&continuation, 1), 0));
    });
    drop(running);
    assert!(engine.cache_tokens_free().is_ok());
}

#[test]
fn a_child_waits_for_its_own_threads() {
    let engine = llama(Made::Palette(Kind::P4), 1).engine(&options(1));
    thread::scope(|scope| {
        let running = engine.inner.lock().unwrap();
        // The child's thread has the lock and is about to say so.
        engine.inner.process.store(0, Ordering::Release);
        let waiting = scope.spawn(|| engine.cache_tokens_free());
        thread::sleep(Duration::from_millis(50));
        engine.inner.process.store(std::process::id(), Ordering::Release);
        thread::sleep(Duration::from_millis(1500));
        drop(running);
        assert!(waiting.join().unwrap().is_ok());
    });
}
