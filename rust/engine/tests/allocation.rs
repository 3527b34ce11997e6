//! A step allocates nothing: all its memory is reserved when the engine is made, and that of several when they are asked for.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::{Made, everything, ids, llama, openelm, options, wide_llama};
use pocketlm_engine::store::{DenseType, Kind};
use pocketlm_engine::{
    Continuation, Engine, Logits, Sampler, SamplingParams, Sequence, StepItem, WriteItem, WriteLimits,
};

/// The system's allocator, counting calls of all threads.
struct Counting;

static COUNT: AtomicUsize = AtomicUsize::new(0);

// SAFETY: passes every call on to the system's allocator, which keeps the contract; counting changes nothing
// of it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller promises a layout that is not empty, which is all that the system's allocator
        // asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller promises a block of this allocator with its layout, and all of its blocks are
        // the system's.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        COUNT.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as in `dealloc`, and the caller promises a size that is neither 0 nor too large.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Held by the test that counts.
static ALONE: Mutex<()> = Mutex::new(());

#[test]
fn a_step_allocates_nothing() {
    let _alone = ALONE.lock().unwrap();
    let models = [
        llama(Made::Palette(Kind::P4), 2),
        openelm(Made::Mixed),
        everything(Made::Mixed),
        wide_llama(Made::Dense(DenseType::Bf16)),
    ];
    for model in models {
        let engine = model.engine(&options(2));
        let prompt = ids(90, model.graph.vocab_size, 1);
        let (one, two) = (engine.sequence().unwrap(), engine.sequence().unwrap());
        // The sampler's own table of tokens grows as new ones appear; here it has seen them all.
        let seen: Vec<u32> = (0..model.graph.vocab_size as u32).collect();
        let params =
            SamplingParams { temperature: 0.0, repetition_penalty: 1.1, ..SamplingParams::default() };
        let mut sampler = Sampler::new(params, &seen).unwrap();
        // The first use starts threads, and gives the sampler its memory.
        engine.step(&mut [StepItem::new(&one, &prompt, Some(&mut sampler), Logits::None)]).unwrap();
        for chunk in [90, 33, 1, 1, 64, 1] {
            let mut items = [
                StepItem::new(&one, &prompt[..1], Some(&mut sampler), Logits::None),
                StepItem::new(&two, &prompt[..chunk], None, Logits::None),
            ];
            let before = COUNT.load(Ordering::Relaxed);
            engine.step(&mut items).unwrap();
            let after = COUNT.load(Ordering::Relaxed);
            assert_eq!(after - before, 0, "allocations in a step of 1 + {chunk} rows");
        }
    }
}

/// Allocations of a call that writes for so many steps.
fn allocations(
    engine: &Engine,
    sequences: &[Sequence],
    samplers: &mut [Sampler],
    continuations: &mut [Continuation],
    steps: usize,
) -> usize {
    let mut items: Vec<WriteItem<'_>> = sequences
        .iter()
        .zip(samplers)
        .zip(continuations)
        .map(|((sequence, sampler), continuation)| WriteItem {
            sequence,
            ids: &[1],
            sampler: Some(sampler),
            logits: Logits::None,
            continuation: Some(continuation),
        })
        .collect();
    let limits = WriteLimits { steps, time: Duration::from_secs(60) };
    let before = COUNT.load(Ordering::Relaxed);
    let written = engine.write(&mut items, limits).unwrap();
    let after = COUNT.load(Ordering::Relaxed);
    assert!(written.iter().all(|written| written.tokens.len() >= steps));
    after - before
}

#[test]
fn steps_of_a_text_allocate_nothing() {
    let _alone = ALONE.lock().unwrap();
    let models = [llama(Made::Palette(Kind::P4), 2), openelm(Made::Mixed), everything(Made::Mixed)];
    for (model, guesses) in models.iter().flat_map(|model| [(model, 0), (model, 8)]) {
        let engine = model.engine(&options(2));
        // As above the sampler has seen all tokens, and is used once before.
        let prompt: Vec<u32> = (0..model.graph.vocab_size as u32).collect();
        for texts in 1..3 {
            let params = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
            let mut samplers = vec![Sampler::new(params, &prompt).unwrap(); texts];
            let sequences: Vec<Sequence> = samplers.iter().map(|_| engine.sequence().unwrap()).collect();
            let mut continuations: Vec<Continuation> =
                samplers.iter().map(|_| Continuation::new(&prompt, 2000, &[], guesses)).collect();
            let mut count =
                |steps| allocations(&engine, &sequences, &mut samplers, &mut continuations, steps);
            count(3);
            // For the call its three lists, for each text its input, its tokens, and three tables where text is looked up.
            let most = 3 + texts * if guesses > 0 { 5 } else { 2 };
            for steps in [1, 10, 30] {
                let found = count(steps);
                assert!(found <= most, "{found} allocations in {steps} steps of {texts} texts, not {most}");
            }
        }
    }
}
