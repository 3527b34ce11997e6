//! Speed of a step at the shape of Llama 3.2 1B, on random palettized weights made in memory: decoding in tokens per second and in
//! bytes of weights per second, beside the read bandwidth that the machine shows in the same minute, and prefill.
//!
//! `cargo run --release -p pocketlm-engine --example decode_bench -- [--embed p4|p8] [--threads N] [--layers N] [--context N]
//! [--batch N] [--rounds N]`
//!
//! Measurements alternate, and medians are printed: other programs disturb some of them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pocketlm_engine::pool::{read_bandwidth, thread_count};
use pocketlm_engine::store::Kind;
use pocketlm_engine::{Engine, EngineOptions, Logits, Sampler, SamplingParams, StepItem};
use random_model::{Shape, model};

mod random_model;

const VOCAB: usize = 128_256;

fn argument(name: &str, default: &str) -> String {
    let arguments: Vec<String> = std::env::args().collect();
    let value = arguments.iter().position(|text| text == name).and_then(|at| arguments.get(at + 1));
    value.cloned().unwrap_or_else(|| default.to_owned())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let embed = Kind::from_name(&argument("--embed", "p4")).ok_or("--embed takes p2, p3, p4 or p8")?;
    let threads = argument("--threads", "0").parse::<usize>()?;
    let threads = thread_count((threads > 0).then_some(threads))?;
    let (layers, context): (usize, usize) =
        (argument("--layers", "16").parse()?, argument("--context", "64").parse()?);
    let (batch, rounds): (usize, usize) =
        (argument("--batch", "1").parse()?, argument("--rounds", "7").parse()?);
    let steps = 24;
    let (graph, store) = model(&Shape {
        width: 2048,
        heads: 32,
        kv_heads: 8,
        head_dim: 64,
        ffn: 8192,
        vocab: VOCAB,
        layers,
        linear: Kind::P4,
        embed,
    })?;
    let options = EngineOptions {
        threads: Some(threads),
        cache_tokens: batch * (context + rounds * steps + 640),
        ..EngineOptions::default()
    };
    let engine = Engine::new(graph, Arc::new(store), &options)?;
    let bytes = engine.weight_bytes_per_token() as f64;
    println!(
        "{} threads, {}, {:.1} MB of weights per token, {:?}",
        threads,
        engine.isa(),
        bytes / 1e6,
        engine.memory()
    );

    let sequences = (0..batch).map(|_| engine.sequence()).collect::<Result<Vec<_>, _>>()?;
    let filler: Vec<u32> = (0..context as u32).map(|token| token % VOCAB as u32).collect();
    for sequence in &sequences {
        for chunk in filler.chunks(engine.max_rows()) {
            engine.step(&mut [StepItem::new(sequence, chunk, None, Logits::None)])?;
        }
    }
    let greedy = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
    let mut samplers =
        (0..batch).map(|_| Sampler::new(greedy.clone(), &[])).collect::<Result<Vec<_>, _>>()?;
    let (mut bandwidths, mut decodes, mut prefills) = (Vec::new(), Vec::new(), Vec::new());
    let mut best = f64::INFINITY;
    let prompt: Vec<u32> = (0..512).collect();
    for round in 0..rounds {
        bandwidths.push(read_bandwidth(threads, Duration::from_millis(300))?);
        let mut ids = vec![[round as u32]; batch];
        let mut times = Vec::new();
        for _ in 0..steps {
            let begin = Instant::now();
            let mut items: Vec<StepItem<'_>> = sequences
                .iter()
                .zip(&ids)
                .zip(&mut samplers)
                .map(|((sequence, id), sampler)| StepItem::new(sequence, id, Some(sampler), Logits::None))
                .collect();
            engine.step(&mut items)?;
            let tokens: Vec<u32> = items.into_iter().filter_map(|item| item.into_result().token).collect();
            times.push(begin.elapsed().as_secs_f64());
            ids.iter_mut().zip(tokens).for_each(|(id, token)| *id = [token]);
        }
        best = times.iter().copied().fold(best, f64::min);
        decodes.push(1.0 / median(times));
        let sequence = engine.sequence()?;
        let begin = Instant::now();
        engine.step(&mut [StepItem::new(&sequence, &prompt, None, Logits::None)])?;
        prefills.push(prompt.len() as f64 / begin.elapsed().as_secs_f64());
    }
    let (bandwidth, steps, prefill) = (median(bandwidths), median(decodes), median(prefills));
    println!("read bandwidth     {:8.2} GB/s", bandwidth / 1e9);
    println!("decode             {:8.2} tokens/s, {:.2} steps/s", steps * batch as f64, steps);
    println!(
        "decode bandwidth   {:8.2} GB/s = {:.1} % of it",
        steps * bytes / 1e9,
        100.0 * steps * bytes / bandwidth
    );
    println!(
        "best step          {:8.2} GB/s = {:.1} % of it",
        bytes / best / 1e9,
        100.0 * bytes / best / bandwidth
    );
    println!("prefill 512        {prefill:8.2} tokens/s");
    Ok(())
}
