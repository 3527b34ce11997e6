//! Sequences against the engine's lock.

use std::sync::Barrier;

use pocketlm_kernels::Kind;

use crate::common::{Made, all_logits, llama, options};

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
