//! Speed of a step at the shape of Llama 3.2 1B, on random palettized weights made in memory: decoding in tokens per second and in
//! bytes of weights per second, beside the read bandwidth that the machine shows in the same minute, and prefill.
//!
//! `cargo run --release -p pocketlm-engine --example decode_bench -- [--embed p4|p8] [--threads N] [--layers N] [--context N]
//! [--batch N] [--rounds N]`
//!
//! Measurements alternate, and medians are printed: other programs disturb some of them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pocketlm_engine::graph::Graph;
use pocketlm_engine::pool::{read_bandwidth, thread_count};
use pocketlm_engine::store::{Kind, WeightStore};
use pocketlm_engine::{Engine, EngineError, EngineOptions, Logits, Sampler, SamplingParams, StepItem};
use serde_json::{Value, json};

const WIDTH: usize = 2048;
const HEADS: usize = 32;
const KV_HEADS: usize = 8;
const DIM: usize = 64;
const FFN: usize = 8192;
const VOCAB: usize = 128_256;

struct Builder {
    ops: Vec<Value>,
    store: WeightStore,
    seed: u64,
}

impl Builder {
    fn op(&mut self, kind: &str, width: usize, mut fields: Value) -> usize {
        fields["kind"] = json!(kind);
        fields["name"] = json!(format!("{kind}.{}", self.ops.len()));
        fields["width"] = json!(width);
        self.ops.push(fields);
        self.ops.len() - 1
    }

    fn random(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len + 8);
        while bytes.len() < len {
            self.seed ^= self.seed << 13;
            self.seed ^= self.seed >> 7;
            self.seed ^= self.seed << 17;
            bytes.extend(self.seed.to_le_bytes());
        }
        bytes.truncate(len);
        bytes
    }

    fn matrix(&mut self, kind: Kind, rows: usize, cols: usize) -> Result<Value, EngineError> {
        let name = format!("matrix.{}", self.ops.len());
        let internal = |error: pocketlm_kernels::KernelError| EngineError::Internal(error.to_string());
        let mut codes = self.random(kind.code_bytes(rows, cols).map_err(internal)?);
        codes.iter_mut().for_each(|code| *code = if *code == 128 && kind == Kind::P8 { 0 } else { *code });
        let (low, high) = kind.grid();
        let span = i32::from(high) - i32::from(low) + 1;
        let book = self.random(rows.div_ceil(16) * kind.codebook_len());
        let book: Vec<u8> =
            book.iter().map(|&byte| (i32::from(low) + i32::from(byte) % span) as i8 as u8).collect();
        let scale = half::f16::from_f32(1.7 / f32::from(high) / (cols as f32).sqrt()).to_bits().to_le_bytes();
        self.store.add_palette(&name, kind, [rows, cols], &codes, &book, &scale.repeat(rows))?;
        Ok(json!({"name": name, "shape": [rows, cols]}))
    }

    fn norm(&mut self, x: usize) -> usize {
        self.op("norm", WIDTH, json!({"x": x, "norm": "rms", "eps": 1e-5}))
    }

    fn linear(&mut self, x: usize, rows: usize, cols: usize) -> Result<usize, EngineError> {
        let weight = self.matrix(Kind::P4, rows, cols)?;
        Ok(self.op("linear", rows, json!({"x": x, "weight": weight})))
    }
}

fn model(layers: usize, embed: Kind) -> Result<(Graph, WeightStore), EngineError> {
    let mut b = Builder { ops: Vec::new(), store: WeightStore::new(), seed: 0x1234_5678_9abc_def1 };
    let table = b.matrix(embed, VOCAB, WIDTH)?;
    let mut x = b.op("embed", WIDTH, json!({"weight": table}));
    let frequencies: Vec<f64> = (0..DIM / 2).map(|i| 5e5f64.powf(-(i as f64) / (DIM / 2) as f64)).collect();
    for layer in 0..layers {
        let h = b.norm(x);
        let q = b.linear(h, HEADS * DIM, WIDTH)?;
        let k = b.linear(h, KV_HEADS * DIM, WIDTH)?;
        let v = b.linear(h, KV_HEADS * DIM, WIDTH)?;
        let rope = |x: usize| json!({"x": x, "head_dim": DIM, "rotary": {"frequencies": frequencies}});
        let (q, k) = (b.op("rope", HEADS * DIM, rope(q)), b.op("rope", KV_HEADS * DIM, rope(k)));
        let a = json!({"q": q, "k": k, "v": v, "heads": HEADS, "kv_heads": KV_HEADS, "head_dim": DIM,
            "scale": 0.125, "cache": layer});
        let a = b.op("attention", HEADS * DIM, a);
        let o = b.linear(a, WIDTH, HEADS * DIM)?;
        x = b.op("add", WIDTH, json!({"a": x, "b": o}));
        let h = b.norm(x);
        let (gate, up) = (b.linear(h, FFN, WIDTH)?, b.linear(h, FFN, WIDTH)?);
        let h = b.op("gated", FFN, json!({"gate": gate, "up": up, "activation": "silu"}));
        let down = b.linear(h, WIDTH, FFN)?;
        x = b.op("add", WIDTH, json!({"a": x, "b": down}));
    }
    let h = b.norm(x);
    b.op("linear", VOCAB, json!({"x": h, "weight": table}));
    let graph = json!({"model_type": "bench", "vocab_size": VOCAB, "context_length": 131_072, "ops": b.ops});
    Ok((Graph::parse(&graph.to_string())?, b.store))
}

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
    let (graph, store) = model(layers, embed)?;
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
