//! A step meets no page for the first time but those of a new block of the cache, which is not touched before tokens lie in it.
//! The whole process is measured, so no other test is in this file.
#![cfg(target_os = "linux")]

mod common;

use common::{Made, ids, llama, options};
use pocketlm_engine::store::Kind;
use pocketlm_engine::{Logits, StepItem};

/// Page faults of this process without reading from a disk.
fn faults() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    stat.rsplit_once(')').unwrap().1.split_whitespace().nth(7).unwrap().parse().unwrap()
}

#[test]
fn a_step_faults_in_new_blocks_only() {
    const BLOCK: usize = 64;
    let model = llama(Made::Palette(Kind::P4), 2);
    let engine = model.engine(&options(2));
    let tokens = ids(90, model.graph.vocab_size, 1);
    let sequence = engine.sequence().unwrap();
    let step = |count: usize| {
        engine.step(&mut [StepItem::new(&sequence, &tokens[..count], None, Logits::Last)]).unwrap();
    };
    // Starts the threads and reaches all of the arena, of the weights, and of two blocks.
    step(90);
    step(1);
    faults();
    let (mut in_blocks, mut in_new) = (0, 0);
    for position in 91..5 * BLOCK {
        let before = faults();
        step(1);
        let found = faults() - before;
        *(if position % BLOCK == 0 { &mut in_new } else { &mut in_blocks }) += found;
    }
    let blocks = options(2).cache_tokens.div_ceil(BLOCK) as u64;
    // From the third block to the fifth; each begins and ends within a page.
    let pages = 3 * ((engine.memory().cache / blocks).div_ceil(4096) + 1);
    assert!(in_new <= pages, "{in_new} faults in new blocks of {pages} pages");
    // Reading the counter, and what else the test's process does, may meet a page now and then.
    assert!(in_blocks <= 16, "{in_blocks} faults in steps within blocks");
}
