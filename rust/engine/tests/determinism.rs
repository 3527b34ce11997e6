//! Results do not depend on threads, batch, chunks, or the cache: equal bit for bit.

mod common;

use common::{Made, Model, all_logits, ids, models, options, wide_llama};
use pocketlm_engine::store::DenseType;
use pocketlm_engine::{Engine, EngineOptions, KvType, Logits, StepItem};

/// Every model with each type of cache, and options for it.
fn each(threads: usize) -> impl Iterator<Item = (String, Model, EngineOptions)> {
    KvType::ALL.into_iter().flat_map(move |kv| {
        models().into_iter().map(move |(name, model)| {
            (format!("{name}, {} cache", kv.name()), model, EngineOptions { kv, ..options(threads) })
        })
    })
}

/// Logits of a prompt in chunks, appended to a fresh sequence.
fn chunked(engine: &Engine, ids: &[u32], chunks: &[usize]) -> Vec<u32> {
    let sequence = engine.sequence().unwrap();
    let (mut found, mut at) = (Vec::new(), 0);
    for &chunk in chunks.iter().cycle() {
        let end = (at + chunk).min(ids.len());
        found.extend(all_logits(engine, &sequence, &ids[at..end]));
        at = end;
        if at == ids.len() {
            return found;
        }
    }
    unreachable!()
}

fn assert_same(name: &str, what: &str, vocab: usize, a: &[u32], b: &[u32]) {
    assert_eq!(a.len(), b.len());
    if let Some(at) = (0..a.len()).find(|&at| a[at] != b[at]) {
        let (x, y) = (f32::from_bits(a[at]), f32::from_bits(b[at]));
        panic!("{name}, {what}: token {}, logit {}: {x} is not {y}", at / vocab, at % vocab);
    }
    assert!(a.iter().all(|&bits| f32::from_bits(bits).is_finite()), "{name}: not finite");
}

fn check(name: &str, model: &Model, length: usize, base: &EngineOptions) {
    let vocab = model.graph.vocab_size;
    let prompt = ids(length, vocab, 5);
    let one = model.engine(&EngineOptions { threads: Some(1), ..base.clone() });
    let whole = chunked(&one, &prompt, &[base.max_rows]);
    let few: &[&[usize]] = &[&[7, 1, 33]];
    let many: &[&[usize]] = &[&[base.max_rows], &[1], &[7, 1, 33], &[64], &[17, 16]];
    for (threads, lists) in [(2, many), (5, few)] {
        let engine = model.engine(&EngineOptions { threads: Some(threads), ..base.clone() });
        for chunks in lists {
            let what = format!("{threads} threads, chunks {chunks:?}");
            assert_same(name, &what, vocab, &whole, &chunked(&engine, &prompt, chunks));
        }
    }
    // Only the last token's logits: the tail runs on one row.
    let sequence = one.sequence().unwrap();
    for (at, chunk) in prompt.chunks(40).enumerate() {
        let mut items = [StepItem::new(&sequence, chunk, None, Logits::Last)];
        one.step(&mut items).unwrap();
        let last: Vec<u32> = items.map(StepItem::into_result)[0].logits.iter().map(|x| x.to_bits()).collect();
        let token = at * 40 + chunk.len() - 1;
        assert_same(name, "last", vocab, &whole[token * vocab..(token + 1) * vocab], &last);
    }
}

#[test]
fn logits_do_not_depend_on_threads_or_chunks() {
    for (name, model, options) in each(1) {
        check(&name, &model, 150, &options);
    }
}

#[test]
fn nor_do_those_of_f32_activations() {
    for (name, model, options) in each(1) {
        check(&name, &model, 70, &EngineOptions { precise: true, ..options });
    }
}

/// Chunks of 32 rows or more are packed, and others are not.
#[test]
fn packed_rows_change_nothing() {
    if !pocketlm_kernels::Kernels::best().unwrap().packs_rows() {
        println!("not exercised: this level does not pack rows");
        return;
    }
    for made in [Made::Dense(DenseType::Bf16), Made::Dense(DenseType::F32), Made::Mixed] {
        check(&format!("wide {made:?}"), &wide_llama(made), 150, &options(1));
    }
    // f16 only where rows are more.
    let model = wide_llama(Made::Dense(DenseType::F16));
    let prompt = ids(510, model.graph.vocab_size, 7);
    let [one, three] =
        [1, 3].map(|threads| model.engine(&EngineOptions { max_rows: 512, ..options(threads) }));
    let (whole, chunks) = (chunked(&three, &prompt, &[510]), chunked(&one, &prompt, &[64]));
    assert_same("wide f16", "packed", model.graph.vocab_size, &whole, &chunks);
}

#[test]
fn long_contexts_are_split_the_same_way() {
    let long = each(1).enumerate().filter(|(index, _)| [0, 7, 11].contains(&(index % models().len())));
    for (name, model, one) in long.map(|(_, case)| case) {
        let vocab = model.graph.vocab_size;
        let prompt = ids(1020, vocab, 6);
        let whole = chunked(&model.engine(&one), &prompt, &[96]);
        let engine = model.engine(&EngineOptions { threads: Some(4), ..one });
        assert_same(&name, "chunks", vocab, &whole, &chunked(&engine, &prompt, &[96]));
        let sequence = engine.sequence().unwrap();
        for chunk in prompt[..1000].chunks(90) {
            engine.step(&mut [StepItem::new(&sequence, chunk, None, Logits::None)]).unwrap();
        }
        for (at, id) in prompt.iter().enumerate().skip(1000) {
            let one = all_logits(&engine, &sequence, &[*id]);
            assert_same(&name, "decoding", vocab, &whole[at * vocab..(at + 1) * vocab], &one);
        }
    }
}

#[test]
fn a_batch_equals_its_rows_run_singly() {
    for (name, model, options) in each(3) {
        let vocab = model.graph.vocab_size;
        let engine = model.engine(&options);
        let alone = EngineOptions { threads: Some(1), ..options };
        let prompts: Vec<Vec<u32>> =
            (0..9).map(|index| ids(1 + 9 * index, vocab, 10 + index as u64)).collect();
        let single: Vec<Vec<u32>> =
            prompts.iter().map(|prompt| chunked(&model.engine(&alone), prompt, &[96])).collect();
        let sequences: Vec<_> = prompts.iter().map(|_| engine.sequence().unwrap()).collect();
        let mut done = vec![0; prompts.len()];
        let mut round = 0;
        while done.iter().zip(&prompts).any(|(&done, prompt)| done < prompt.len()) {
            let mut items = Vec::new();
            let mut members = Vec::new();
            for (index, prompt) in prompts.iter().enumerate() {
                // Prompt chunks of some sequences beside single tokens of others.
                let count = (1 + (round * 5 + index * 3) % 12).min(prompt.len() - done[index]);
                if count > 0 {
                    let chunk = &prompt[done[index]..done[index] + count];
                    items.push(StepItem::new(&sequences[index], chunk, None, Logits::All));
                    members.push((index, count));
                }
            }
            engine.step(&mut items).unwrap();
            for (item, (index, count)) in items.into_iter().zip(members) {
                let found: Vec<u32> = item.into_result().logits.iter().map(|x| x.to_bits()).collect();
                let expected = &single[index][done[index] * vocab..(done[index] + count) * vocab];
                assert_same(&name, &format!("batch, sequence {index}"), vocab, expected, &found);
                done[index] += count;
            }
            round += 1;
        }
    }
}

#[test]
fn forks_and_truncated_sequences_equal_fresh_ones() {
    for (name, model, options) in each(2) {
        let vocab = model.graph.vocab_size;
        let engine = model.engine(&options);
        let prompt = ids(90, vocab, 20);
        let other = ids(30, vocab, 21);
        let trunk = engine.sequence().unwrap();
        all_logits(&engine, &trunk, &prompt);
        let branch = trunk.fork().unwrap();
        branch.truncate(77).unwrap();
        let joined: Vec<u32> = prompt[..77].iter().chain(&other).copied().collect();
        let expected = chunked(&engine, &joined, &[96]);
        assert_same(&name, "branch", vocab, &expected[77 * vocab..], &all_logits(&engine, &branch, &other));
        let joined: Vec<u32> = prompt.iter().chain(&other).copied().collect();
        let expected = chunked(&engine, &joined, &[96]);
        assert_same(&name, "trunk", vocab, &expected[90 * vocab..], &all_logits(&engine, &trunk, &other));
    }
}

#[test]
fn a_trace_ends_with_the_logits() {
    for (name, model, options) in each(2) {
        let vocab = model.graph.vocab_size;
        let engine = model.engine(&options);
        let prompt = ids(50, vocab, 30);
        let traced = engine.trace(&prompt, None).unwrap();
        assert_eq!(traced.len(), model.graph.ops.len());
        for (op, traced) in model.graph.ops.iter().zip(&traced) {
            assert_eq!((op.name.as_str(), op.width), (traced.name.as_str(), traced.width));
            assert_eq!(traced.values.len(), op.width * prompt.len());
        }
        let last: Vec<u32> = traced[traced.len() - 1].values.iter().map(|x| x.to_bits()).collect();
        assert_same(&name, "trace", vocab, &chunked(&engine, &prompt, &[96]), &last);
        let names: Vec<String> = [traced[1].name.clone(), traced[0].name.clone()].into();
        assert_eq!(engine.trace(&prompt, Some(&names)).unwrap(), traced[..2]);
        assert!(engine.trace(&prompt, Some(&["nowhere".into()])).is_err());
    }
}
