//! Guesses change nothing but the number of steps: tokens, log-probabilities, cache and sampler are those of steps of one token.

mod common;

use std::time::Duration;

use common::{Made, Model, everything, ids, llama, openelm, options};
use pocketlm_engine::store::Kind;
use pocketlm_engine::{
    Continuation, Details, Engine, EngineError, EngineOptions, KvType, Logits, Sampler, SamplingParams,
    Sequence, StepItem, WriteItem, WriteLimits, Written,
};
use proptest::prelude::*;

fn models() -> [Model; 3] {
    [llama(Made::Palette(Kind::P4), 2), openelm(Made::Mixed), everything(Made::Mixed)]
}

fn with_cache(kv: KvType, threads: usize) -> EngineOptions {
    EngineOptions { kv, ..options(threads) }
}

/// Tokens one by one, with what is reported of each.
fn plainly(
    engine: &Engine,
    sequence: &Sequence,
    prompt: &[u32],
    sampler: &mut Sampler,
    count: usize,
) -> Written {
    let mut written = Written::default();
    let mut next = prompt.to_vec();
    for _ in 0..count {
        let mut items = [StepItem::new(sequence, &next, Some(&mut *sampler), Logits::None)];
        engine.step(&mut items).unwrap();
        let [result] = items.map(StepItem::into_result);
        let token = result.token.unwrap();
        written.tokens.push(token);
        written.details.push(Details { logprob: result.logprob, top: result.top });
        next = vec![token];
    }
    written
}

fn params() -> impl Strategy<Value = SamplingParams> {
    (0.0f32..1.5, 0u32..20, 0.3f32..1.0, 0u64..1000, prop::bool::ANY, prop::bool::ANY).prop_map(
        |(temperature, top_k, top_p, seed, greedy, penalties)| SamplingParams {
            temperature: if greedy { 0.0 } else { temperature },
            top_k,
            top_p,
            seed,
            repetition_penalty: if penalties { 1.3 } else { 1.0 },
            presence_penalty: if penalties { 0.4 } else { 0.0 },
            frequency_penalty: if penalties { 0.3 } else { 0.0 },
            logprobs: Some(2),
            ..SamplingParams::default()
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn guesses_are_proved_or_refuted(
        which in 0usize..3,
        kv in prop::sample::select(KvType::ALL.to_vec()),
        threads in 1usize..3,
        prompt in 1usize..90,
        params in params(),
        // For each step the number of guesses and the first wrong one.
        steps in prop::collection::vec((0usize..12, 0usize..14), 1..8),
        neighbour in prop::bool::ANY,
    ) {
        let model = &models()[which];
        let engine = model.engine(&with_cache(kv, threads));
        let vocab = model.graph.vocab_size;
        let prompt = ids(prompt, vocab, 9);
        let (one, two, other) = (engine.sequence().unwrap(), engine.sequence().unwrap(), engine.sequence().unwrap());
        let mut sampler = Sampler::new(params.clone(), &prompt).unwrap();
        let total = 1 + steps.iter().map(|(guesses, _)| guesses + 1).sum::<usize>();
        let expected = plainly(&engine, &one, &prompt, &mut sampler, total + 12);

        let mut sampler = Sampler::new(params, &prompt).unwrap();
        let mut found = plainly(&engine, &two, &prompt, &mut sampler, 1);
        for (guesses, wrong) in steps {
            let at = found.tokens.len();
            let mut input = expected.tokens[at - 1..at + guesses].to_vec();
            if let Some(guess) = input.get_mut(1 + wrong) {
                *guess = (*guess + 1) % vocab as u32;
            }
            let beside = ids(17, vocab, at as u64);
            let mut items = vec![StepItem::new(&two, &input, Some(&mut sampler), Logits::None).guessing(guesses, &[])];
            if neighbour {
                items.insert(0, StepItem::new(&other, &beside, None, Logits::All));
            }
            engine.step(&mut items).unwrap();
            let result = items.pop().unwrap().into_result();
            prop_assert_eq!(result.accepted, guesses.min(wrong));
            found.tokens.extend(&input[1..][..result.accepted]);
            found.tokens.push(result.token.unwrap());
            found.details.extend(result.earlier);
            found.details.push(Details { logprob: result.logprob, top: result.top });
            prop_assert_eq!(two.length(), prompt.len() + found.tokens.len() - 1);
            drop(items);
            if neighbour {
                other.truncate(0).unwrap();
            }
        }
        // The cache and the sampler are such that the text goes on as it does without guesses.
        let at = found.tokens.len();
        let last = found.tokens[at - 1];
        let rest = plainly(&engine, &two, &[last], &mut sampler, 10);
        found.tokens.extend(rest.tokens);
        found.details.extend(rest.details);
        prop_assert_eq!(&found.tokens[..], &expected.tokens[..at + 10]);
        prop_assert_eq!(&found.details[..], &expected.details[..at + 10]);
        let wanted: Vec<u8> = {
            one.truncate(two.length()).unwrap();
            engine.export(&one).unwrap()
        };
        prop_assert!(engine.export(&two).unwrap() == wanted);
    }

    #[test]
    fn a_text_is_the_same_however_it_is_written(
        which in 0usize..3,
        kv in prop::sample::select(KvType::ALL.to_vec()),
        params in params(),
        tokens in 1usize..80,
        stop in prop::option::of(0usize..60),
        guesses in 0usize..10,
        steps in 1usize..9,
        texts in 1usize..4,
    ) {
        let model = &models()[which];
        let engine = model.engine(&with_cache(kv, 2));
        let vocab = model.graph.vocab_size;
        // A text that repeats, so that there is something to look up.
        let prompts: Vec<Vec<u32>> = (0..texts).map(|text| ids(14, vocab, text as u64).repeat(2)).collect();
        let expected: Vec<Written> = prompts.iter().map(|prompt| {
            let sequence = engine.sequence().unwrap();
            plainly(&engine, &sequence, prompt, &mut Sampler::new(params.clone(), prompt).unwrap(), tokens)
        }).collect();
        let stops: Vec<u32> = stop.and_then(|at| expected[0].tokens.get(at)).copied().into_iter().collect();
        let end = |written: &Written| {
            written.tokens.iter().position(|token| stops.contains(token)).map_or(tokens, |at| at + 1)
        };
        let mut samplers: Vec<Sampler> = prompts.iter().map(|p| Sampler::new(params.clone(), p).unwrap()).collect();
        let mut continuations: Vec<Continuation> =
            prompts.iter().map(|p| Continuation::new(p, tokens, &stops, guesses)).collect();
        let sequences: Vec<Sequence> = prompts.iter().map(|_| engine.sequence().unwrap()).collect();
        let mut found: Vec<Written> = vec![Written::default(); texts];
        let mut next: Vec<Vec<u32>> = prompts.clone();
        while continuations.iter().any(|c| !c.ended()) {
            let running: Vec<usize> = (0..texts).filter(|&text| !continuations[text].ended()).collect();
            let mut items = Vec::new();
            let parts = sequences.iter().zip(&next).zip(&mut samplers).zip(&mut continuations);
            for (((sequence, ids), sampler), continuation) in parts {
                if !continuation.ended() {
                    items.push(WriteItem {
                        sequence, ids, sampler: Some(sampler), logits: Logits::None, continuation: Some(continuation),
                    });
                }
            }
            let limits = WriteLimits { steps, time: Duration::from_secs(60) };
            let written = engine.write(&mut items, limits).unwrap();
            drop(items);
            for (text, written) in running.into_iter().zip(written) {
                prop_assert!(!written.tokens.is_empty());
                next[text] = vec![*written.tokens.last().unwrap()];
                found[text].tokens.extend(written.tokens);
                found[text].details.extend(written.details);
            }
        }
        for ((found, expected), (sequence, prompt)) in
            found.iter().zip(&expected).zip(sequences.iter().zip(&prompts))
        {
            prop_assert_eq!(&found.tokens[..], &expected.tokens[..end(expected)]);
            prop_assert_eq!(&found.details[..], &expected.details[..end(expected)]);
            prop_assert_eq!(sequence.length(), prompt.len() + found.tokens.len() - 1);
        }
    }
}

#[test]
fn looking_up_saves_steps_on_a_text_that_repeats() {
    let model = llama(Made::Palette(Kind::P4), 2);
    let engine = model.engine(&options(1));
    let prompt = ids(8, model.graph.vocab_size, 3);
    let greedy = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
    // Small random models soon run in circles. Whether guesses pay is measured, and a busy machine may delay that.
    let mut right = 0;
    for _ in 0..20 {
        let sequence = engine.sequence().unwrap();
        let mut sampler = Sampler::new(greedy.clone(), &prompt).unwrap();
        let mut continuation = Continuation::new(&prompt, 400, &[], 8);
        let limits = WriteLimits { steps: 400, time: Duration::from_secs(60) };
        let mut items = [WriteItem {
            sequence: &sequence,
            ids: &prompt,
            sampler: Some(&mut sampler),
            logits: Logits::None,
            continuation: Some(&mut continuation),
        }];
        let written = engine.write(&mut items, limits).unwrap();
        assert_eq!(written[0].tokens.len(), 400);
        let (proposed, accepted) = continuation.counts();
        assert!(accepted <= proposed);
        right += accepted;
        if right > 0 {
            return;
        }
    }
    panic!("no guess was right in 20 texts");
}

/// Tokens one by one until a step fails, and how it fails.
fn until_full(
    engine: &Engine,
    sequence: &Sequence,
    prompt: &[u32],
    sampler: &mut Sampler,
) -> (Vec<u32>, EngineError) {
    let (mut tokens, mut next) = (Vec::new(), prompt.to_vec());
    loop {
        let mut items = [StepItem::new(sequence, &next, Some(&mut *sampler), Logits::None)];
        if let Err(error) = engine.step(&mut items) {
            return (tokens, error);
        }
        let [result] = items.map(StepItem::into_result);
        tokens.extend(result.token);
        next = result.token.into_iter().collect();
    }
}

#[test]
fn guesses_keep_to_the_room_that_is_left() {
    let mut short = llama(Made::Palette(Kind::P4), 1);
    short.graph.context_length = 100;
    // By the cache and by the context; in the last block and before it, with a last block that is shared and that is not.
    for (cache_tokens, shared) in [(64, false), (128, false), (128, true), (192, true)] {
        let engine = short.engine(&EngineOptions { cache_tokens, ..options(1) });
        for length in [40, 57, 62, 63, 64] {
            let prompt = ids(length, short.graph.vocab_size, 5);
            let greedy = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
            let new = || Sampler::new(greedy.clone(), &prompt).unwrap();
            let begin = || {
                let sequence = engine.sequence().unwrap();
                append(&engine, &sequence, &prompt[..length - 1]);
                let other = shared.then(|| sequence.fork().unwrap());
                (sequence, other)
            };
            let (expected, failure) = {
                let (sequence, _other) = begin();
                until_full(&engine, &sequence, &prompt[length - 1..], &mut new())
            };
            for guesses in [1, 3, 16] {
                let (sequence, _other) = begin();
                let (mut sampler, mut found) = (new(), Vec::new());
                let mut continuation = Continuation::new(&prompt, 1000, &[], guesses);
                let mut next = prompt[length - 1];
                let error = loop {
                    // A draft model that is always right, and goes on beyond what fits.
                    let mut drafted = expected[found.len()..].to_vec();
                    drafted.resize(guesses, 1);
                    continuation.draft(&drafted, 0.0);
                    let mut items = [WriteItem {
                        sequence: &sequence,
                        ids: &[next],
                        sampler: Some(&mut sampler),
                        logits: Logits::None,
                        continuation: Some(&mut continuation),
                    }];
                    let limits = WriteLimits { steps: 2, time: Duration::from_secs(60) };
                    match engine.write(&mut items, limits) {
                        Ok(written) => found.extend(&written[0].tokens),
                        Err(error) => break error,
                    }
                    next = *found.last().unwrap();
                };
                assert_eq!(found, expected, "{length} tokens, {guesses} guesses, cache of {cache_tokens}");
                assert_eq!(error, failure);
                assert!(continuation.counts().1 > 0 || expected.len() < 3);
            }
        }
    }
}

#[test]
fn a_failed_step_leaves_sampler_and_sequence() {
    let model = llama(Made::Palette(Kind::P4), 2);
    let engine = model.engine(&options(2));
    let prompt = ids(70, model.graph.vocab_size, 4);
    let params = SamplingParams { temperature: 0.0, frequency_penalty: 0.5, ..SamplingParams::default() };
    let plain = engine.sequence().unwrap();
    let expected = plainly(&engine, &plain, &prompt, &mut Sampler::new(params.clone(), &prompt).unwrap(), 12);
    let sequence = engine.sequence().unwrap();
    let mut sampler = Sampler::new(params, &prompt).unwrap();
    let first = plainly(&engine, &sequence, &prompt, &mut sampler, 1).tokens;
    let other = engine.sequence().unwrap();
    // A bias beyond the vocabulary makes the neighbour's sampling fail.
    let bad = SamplingParams { logit_bias: vec![(1 << 20, 1.0)], ..SamplingParams::default() };
    let mut bad = Sampler::new(bad, &[]).unwrap();
    let mut items = [
        StepItem::new(&sequence, &expected.tokens[..6], Some(&mut sampler), Logits::None).guessing(5, &[]),
        StepItem::new(&other, &prompt, Some(&mut bad), Logits::None),
    ];
    assert!(matches!(engine.step(&mut items), Err(EngineError::Parameter { .. })));
    drop(items);
    assert_eq!((sequence.length(), other.length()), (70, 0));
    let rest = plainly(&engine, &sequence, &first, &mut sampler, 11);
    assert_eq!(rest.tokens, expected.tokens[1..]);
}

#[test]
fn guesses_need_a_token_before_and_a_sampler() {
    let model = llama(Made::Palette(Kind::P4), 1);
    let engine = model.engine(&options(1));
    let sequence = engine.sequence().unwrap();
    let mut sampler = Sampler::new(SamplingParams::default(), &[]).unwrap();
    let refused = |item: StepItem<'_>| {
        assert!(matches!(engine.step(&mut [item]), Err(EngineError::Parameter { .. })));
    };
    refused(StepItem::new(&sequence, &[1, 2], None, Logits::None).guessing(1, &[]));
    refused(StepItem::new(&sequence, &[1, 2], Some(&mut sampler), Logits::None).guessing(2, &[]));
    refused(StepItem::new(&sequence, &[1, 2], Some(&mut sampler), Logits::All).guessing(1, &[]));
}

/// Appends tokens in chunks that fit a step.
fn append(engine: &Engine, sequence: &Sequence, ids: &[u32]) {
    for chunk in ids.chunks(64) {
        engine.step(&mut [StepItem::new(sequence, chunk, None, Logits::None)]).unwrap();
    }
}

#[test]
fn saved_sequences_go_on_bit_for_bit() {
    for (model, kv) in models().into_iter().flat_map(|m| KvType::ALL.map(|kv| (m.clone(), kv))) {
        let engine = model.engine(&with_cache(kv, 2));
        let vocab = model.graph.vocab_size;
        for length in [1, 63, 64, 130] {
            let text = ids(length, vocab, 1);
            let sequence = engine.sequence().unwrap();
            append(&engine, &sequence, &text);
            // What lies behind the end, in a block shared with a longer text, is not saved.
            let longer = sequence.fork().unwrap();
            append(&engine, &longer, &text);
            longer.truncate(length).unwrap();
            let saved = engine.export(&sequence).unwrap();
            assert_eq!(saved.len(), length.div_ceil(64) * engine.block_bytes().unwrap());
            assert!(saved == engine.export(&longer).unwrap());
            let other = model.engine(&with_cache(kv, 1));
            let restored = other.import(length, &saved).unwrap();
            assert_eq!(restored.length(), length);
            let more = ids(70, vocab, 2);
            assert_eq!(
                common::all_logits(&other, &restored, &more),
                common::all_logits(&engine, &sequence, &more)
            );
            assert!(matches!(other.import(length + 64, &saved), Err(EngineError::Parameter { .. })));
        }
        assert!(matches!(engine.import(usize::MAX, &[]), Err(EngineError::ContextLength { .. })));
        let huge = engine.context_length();
        let bytes = vec![0; huge.div_ceil(64) * engine.block_bytes().unwrap()];
        if engine.cache_tokens() < huge {
            assert!(matches!(engine.import(huge, &bytes), Err(EngineError::CacheFull { .. })));
        }
    }
}

#[test]
fn prewarming_needs_an_open_engine() {
    for model in models() {
        let engine = model.engine(&options(2));
        engine.prewarm().unwrap();
        engine.close().unwrap();
        assert!(engine.prewarm().is_err());
    }
}
