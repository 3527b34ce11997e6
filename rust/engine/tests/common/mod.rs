//! Small models with random weights, as graphs built by hand.
#![allow(dead_code)]

use std::sync::Arc;

use pocketlm_engine::graph::Graph;
use pocketlm_engine::store::{Bytes, DenseType, Kind, WeightStore};
use pocketlm_engine::{Engine, EngineOptions, Logits, Sequence, StepItem};
use serde_json::{Value, json};

/// SplitMix64.
pub struct Random(pub u64);

impl Random {
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, limit: usize) -> usize {
        (self.bits() % limit as u64) as usize
    }

    /// Uniform in [-1, 1).
    pub fn unit(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
}

/// What matrices are made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Made {
    Dense(DenseType),
    Palette(Kind),
    /// Each matrix of another kind.
    Mixed,
}

/// A graph under construction.
pub struct Build {
    ops: Vec<Value>,
    rotaries: Vec<Value>,
    pub store: WeightStore,
    random: Random,
    made: Made,
    count: usize,
    /// Rank of a low-rank term beside each product that [`Build::linear`] makes; 0 for none.
    pub rank: usize,
}

impl Build {
    pub fn new(made: Made, seed: u64) -> Self {
        Self {
            ops: Vec::new(),
            rotaries: Vec::new(),
            store: WeightStore::new(),
            random: Random(seed),
            made,
            count: 0,
            rank: 0,
        }
    }

    pub fn op(&mut self, kind: &str, width: usize, fields: Value) -> usize {
        let index = self.ops.len();
        let mut op = json!({"kind": kind, "name": format!("{kind}.{index}"), "width": width});
        op.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        self.ops.push(op);
        index
    }

    pub fn width(&self, op: usize) -> usize {
        self.ops[op]["width"].as_u64().unwrap() as usize
    }

    /// A new vector of about 1 (or 0).
    pub fn vector(&mut self, len: usize, around: f32) -> Value {
        let name = format!("vector.{}", self.store.tensors().count());
        let bytes: Vec<u8> =
            (0..len).flat_map(|_| (around + 0.2 * self.random.unit()).to_le_bytes()).collect();
        self.store.add_dense(&name, DenseType::F32, &[len], Bytes::copy(&bytes)).unwrap();
        json!({"name": name, "shape": [len]})
    }

    /// A new matrix.
    pub fn matrix(&mut self, rows: usize, cols: usize) -> Value {
        let name = format!("matrix.{}", self.store.tensors().count());
        self.count += 1;
        let made = match (self.made, self.count % 4) {
            (Made::Mixed, 0) => Made::Dense(DenseType::Bf16),
            (Made::Mixed, 1) => Made::Palette(Kind::P8),
            (Made::Mixed, 2) => Made::Palette(Kind::P4),
            (Made::Mixed, _) => Made::Palette(Kind::P2v),
            (made, _) => made,
        };
        let size = 1.7 / (cols as f32).sqrt();
        match made {
            Made::Dense(dtype) => {
                let mut bytes = Vec::new();
                for _ in 0..rows * cols {
                    let value = size * self.random.unit();
                    match dtype {
                        DenseType::F32 => bytes.extend(value.to_le_bytes()),
                        DenseType::F16 => bytes.extend(half::f16::from_f32(value).to_bits().to_le_bytes()),
                        DenseType::Bf16 => bytes.extend(half::bf16::from_f32(value).to_bits().to_le_bytes()),
                    }
                }
                self.store.add_dense(&name, dtype, &[rows, cols], Bytes::copy(&bytes)).unwrap();
            }
            Made::Palette(kind) => self.palette(&name, kind, rows, cols, size),
            Made::Mixed => unreachable!(),
        }
        json!({"name": name, "shape": [rows, cols]})
    }

    fn palette(&mut self, name: &str, kind: Kind, rows: usize, cols: usize, size: f32) {
        let random = &mut self.random;
        // 127 values are as likely as -128, which int8 weights do not hold.
        let codes: Vec<u8> = (0..kind.code_bytes(rows, cols).unwrap()).map(|_| random.bits() as u8).collect();
        let codes: Vec<u8> = if kind == Kind::P8 {
            codes.iter().map(|&code| code.max(129).wrapping_add(code & 1)).collect()
        } else {
            codes
        };
        let (low, high) = kind.grid();
        let entries = rows.div_ceil(16) * kind.codebook_len();
        let span = i32::from(high) - i32::from(low) + 1;
        let book: Vec<u8> =
            (0..entries).map(|_| (i32::from(low) + random.below(span as usize) as i32) as i8 as u8).collect();
        let scale: Vec<u8> = (0..rows)
            .flat_map(|_| {
                half::f16::from_f32(size / f32::from(high) * (1.0 + 0.3 * random.unit()))
                    .to_bits()
                    .to_le_bytes()
            })
            .collect();
        self.store.add_palette(name, kind, [rows, cols], &codes, &book, &scale).unwrap();
    }

    pub fn norm(&mut self, x: usize, kind: &str, weight: bool, bias: bool, group: Option<usize>) -> usize {
        let width = self.width(x);
        let weight = weight.then(|| self.vector(group.unwrap_or(width), 1.0));
        let bias = bias.then(|| self.vector(group.unwrap_or(width), 0.0));
        self.op("norm", width, json!({"x": x, "norm": kind, "eps": 1e-5, "weight": weight, "bias": bias, "offset": 0.0, "group": group}))
    }

    pub fn linear(&mut self, x: usize, width: usize, bias: bool) -> usize {
        let weight = self.matrix(width, self.width(x));
        let bias = bias.then(|| self.vector(width, 0.0));
        let product = self.op("linear", width, json!({"x": x, "weight": weight, "bias": bias}));
        if self.rank == 0 { product } else { self.low_rank(x, product) }
    }

    /// `product` plus a low-rank term of `x`, as an adapter adds it.
    pub fn low_rank(&mut self, x: usize, product: usize) -> usize {
        let (rank, width) = (self.rank, self.width(product));
        let (a, b) = (self.matrix(rank, self.width(x)), self.matrix(width, rank));
        let inner = self.op("linear", rank, json!({"x": x, "weight": a, "bias": null}));
        let outer = self.op("linear", width, json!({"x": inner, "weight": b, "bias": null}));
        self.add(product, outer)
    }

    pub fn slice(&mut self, x: usize, start: usize, width: usize) -> usize {
        self.op("slice", width, json!({"x": x, "start": start}))
    }

    pub fn rope(&mut self, x: usize, head_dim: usize, pairs: usize, interleaved: bool) -> usize {
        let frequencies: Vec<f64> = (0..pairs).map(|i| 100f64.powf(-(i as f64) / pairs as f64)).collect();
        self.rotaries.push(json!({"frequencies": frequencies, "scale": 1.0, "interleaved": interleaved}));
        let rotary = self.rotaries.len() - 1;
        self.op("rope", self.width(x), json!({"x": x, "head_dim": head_dim, "rotary": rotary}))
    }

    pub fn attention(
        &mut self,
        qkv: (usize, Option<usize>, Option<usize>),
        heads: [usize; 3],
        cache: usize,
        more: Value,
    ) -> usize {
        let [heads, kv_heads, head_dim] = heads;
        let scale = 1.0 / (head_dim as f64).sqrt();
        let mut fields = json!({"q": qkv.0, "k": qkv.1, "v": qkv.2, "heads": heads, "kv_heads": kv_heads,
            "head_dim": head_dim, "scale": scale, "cache": cache, "window": null, "softcap": null});
        fields.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        self.op("attention", heads * head_dim, fields)
    }

    pub fn add(&mut self, a: usize, b: usize) -> usize {
        self.op("add", self.width(a), json!({"a": a, "b": b}))
    }

    pub fn gated(&mut self, gate: usize, up: usize, activation: &str) -> usize {
        self.op("gated", self.width(up), json!({"gate": gate, "up": up, "activation": activation}))
    }

    pub fn finish(self, vocab: usize, context: usize) -> Model {
        let graph = json!({"model_type": "test", "vocab_size": vocab, "context_length": context, "rotaries": self.rotaries, "ops": self.ops});
        Model { graph: Graph::parse(&graph.to_string()).unwrap(), store: Arc::new(self.store) }
    }
}

/// A graph with its weights.
#[derive(Clone)]
pub struct Model {
    pub graph: Graph,
    pub store: Arc<WeightStore>,
}

impl Model {
    pub fn engine(&self, options: &EngineOptions) -> Engine {
        Engine::new(self.graph.clone(), Arc::clone(&self.store), options).unwrap()
    }
}

pub fn options(threads: usize) -> EngineOptions {
    EngineOptions { threads: Some(threads), cache_tokens: 4096, max_rows: 96, ..EngineOptions::default() }
}

/// Appends tokens and returns the logits of all of them, as bits.
pub fn all_logits(engine: &Engine, sequence: &Sequence, ids: &[u32]) -> Vec<u32> {
    let mut items = [StepItem::new(sequence, ids, None, Logits::All)];
    engine.step(&mut items).unwrap();
    let [item] = items;
    item.into_result().logits.iter().map(|logit| logit.to_bits()).collect()
}

/// Llama: grouped queries, rotary, gated SiLU, untied head.
pub fn llama(made: Made, layers: usize) -> Model {
    adapted_llama(made, layers, 0)
}

/// Llama with a low-rank term of a rank beside each product.
pub fn adapted_llama(made: Made, layers: usize, rank: usize) -> Model {
    sized_llama(made, layers, rank, (211, 96, 16, 6, 2, 272))
}

/// Llama whose rows are wide enough to be packed for products of many: several blocks of inputs, the last one not full.
pub fn wide_llama(made: Made) -> Model {
    sized_llama(made, 2, 0, (300, 256, 32, 8, 2, 2100))
}

/// Llama of a vocabulary, width, channels of a head, heads, key-value heads, and width of the feed-forward layers.
fn sized_llama(
    made: Made,
    layers: usize,
    rank: usize,
    (vocab, width, dim, heads, kv_heads, ffn): (usize, usize, usize, usize, usize, usize),
) -> Model {
    let mut g = Build::new(made, 1);
    g.rank = rank;
    let table = g.matrix(vocab, width);
    let mut x = g.op("embed", width, json!({"weight": table, "scale": 1.0}));
    for layer in 0..layers {
        let h = g.norm(x, "rms", true, false, None);
        let (q, k, v) = (
            g.linear(h, heads * dim, false),
            g.linear(h, kv_heads * dim, false),
            g.linear(h, kv_heads * dim, false),
        );
        let (q, k) = (g.rope(q, dim, dim / 2, false), g.rope(k, dim, dim / 2, false));
        let a = g.attention((q, Some(k), Some(v)), [heads, kv_heads, dim], layer, json!({}));
        let o = g.linear(a, width, false);
        x = g.add(x, o);
        let h = g.norm(x, "rms", true, false, None);
        let (gate, up) = (g.linear(h, ffn, false), g.linear(h, ffn, false));
        let h = g.gated(gate, up, "silu");
        let down = g.linear(h, width, false);
        x = g.add(x, down);
    }
    let h = g.norm(x, "rms", true, false, None);
    g.linear(h, vocab, false);
    g.finish(vocab, 2048)
}

/// OpenELM: layers of different shapes, fused projections, query and key norms, tied embedding.
pub fn openelm(made: Made) -> Model {
    adapted_openelm(made, 0)
}

/// OpenELM with a low-rank term of a rank beside each projection.
pub fn adapted_openelm(made: Made, rank: usize) -> Model {
    let (vocab, width, dim) = (193, 128, 32);
    let mut g = Build::new(made, 2);
    g.rank = rank;
    let table = g.matrix(vocab, width);
    let mut x = g.op("embed", width, json!({"weight": table, "scale": 1.0}));
    for (layer, (heads, kv_heads, ffn)) in [(4, 1, 256), (8, 2, 512), (4, 2, 80)].into_iter().enumerate() {
        let h = g.norm(x, "rms", true, false, None);
        let qkv = g.linear(h, (heads + 2 * kv_heads) * dim, false);
        let q = g.slice(qkv, 0, heads * dim);
        let k = g.slice(qkv, heads * dim, kv_heads * dim);
        let v = g.slice(qkv, (heads + kv_heads) * dim, kv_heads * dim);
        let (q, k) = (g.norm(q, "rms", true, false, Some(dim)), g.norm(k, "rms", true, false, Some(dim)));
        let (q, k) = (g.rope(q, dim, dim / 2, false), g.rope(k, dim, dim / 2, false));
        let a = g.attention((q, Some(k), Some(v)), [heads, kv_heads, dim], layer, json!({}));
        let o = g.linear(a, width, false);
        x = g.add(x, o);
        let h = g.norm(x, "rms", true, false, None);
        let both = g.linear(h, 2 * ffn, false);
        let (gate, up) = (g.slice(both, 0, ffn), g.slice(both, ffn, ffn));
        let h = g.gated(gate, up, "silu");
        let down = g.linear(h, width, false);
        x = g.add(x, down);
    }
    let h = g.norm(x, "rms", true, false, None);
    g.op("linear", vocab, json!({"x": h, "weight": table, "bias": null}));
    g.finish(vocab, 2048)
}

/// Every operation, in unusual company: learned positions, parallel residual, LayerNorms with and without weights, biases, partial and
/// interleaved rotary, window, softcaps, clip, scale, post-norms, a shared cache, a value read several times.
pub fn everything(made: Made) -> Model {
    adapted_everything(made, 0)
}

/// [`everything`] with a low-rank term of a rank beside each product.
pub fn adapted_everything(made: Made, rank: usize) -> Model {
    let (vocab, width, dim) = (101, 80, 20);
    let mut g = Build::new(made, 3);
    g.rank = rank;
    let table = g.matrix(vocab + 3, width);
    let places = g.matrix(1024, width);
    let token = g.op("embed", width, json!({"weight": table, "scale": 2.5}));
    let place = g.op("positions", width, json!({"weight": places}));
    let mut x = g.add(token, place);
    // Phi-2: one norm, attention and MLP in parallel, biases, partial rotary.
    let h = g.norm(x, "layer", true, true, None);
    let (q, k, v) = (g.linear(h, 4 * dim, true), g.linear(h, 2 * dim, true), g.linear(h, 2 * dim, true));
    let (q, k) = (g.rope(q, dim, 4, false), g.rope(k, dim, 4, false));
    let a = g.attention((q, Some(k), Some(v)), [4, 2, dim], 7, json!({"window": 37}));
    let o = g.linear(a, width, true);
    let f = g.linear(h, 200, true);
    let f = g.op("activation", 200, json!({"x": f, "activation": "gelu_tanh"}));
    let f = g.linear(f, width, true);
    let both = g.add(o, f);
    x = g.add(x, both);
    // OLMo and DBRX: a norm without weights, clipped projections; Gemma 2: post-norms and soft caps; here interleaved rotary too.
    let h = g.norm(x, "layer", false, false, None);
    let qkv = g.linear(h, 5 * dim, false);
    let qkv = g.op("clip", 5 * dim, json!({"x": qkv, "limit": 0.9}));
    let (q, k, v) = (g.slice(qkv, 0, 3 * dim), g.slice(qkv, 3 * dim, dim), g.slice(qkv, 4 * dim, dim));
    let (q, k) = (g.norm(q, "layer", true, true, Some(dim)), g.norm(k, "rms", true, false, Some(dim)));
    let (q, k) = (g.rope(q, dim, dim / 2, true), g.rope(k, dim, dim / 2, true));
    let a = g.attention((q, Some(k), Some(v)), [3, 1, dim], 2, json!({"softcap": 1.5}));
    let o = g.linear(a, width, false);
    let o = g.norm(o, "rms", true, false, None);
    x = g.add(x, o);
    // A layer that attends to the cache above, with the normalised value read by a product, a sum and a slice.
    let h = g.norm(x, "rms", true, false, None);
    let q = g.linear(h, 3 * dim, false);
    let a = g.attention((q, None, None), [3, 1, dim], 2, json!({"window": 70}));
    let a = g.op("scale", 3 * dim, json!({"x": a, "factor": 0.8}));
    let o = g.linear(a, width, false);
    let part = g.slice(h, 16, 48);
    let part = g.op("activation", 48, json!({"x": part, "activation": "relu2"}));
    let part = g.linear(part, width, false);
    let sum = g.add(h, o);
    let sum = g.add(sum, part);
    x = g.add(sum, x);
    // Queries, keys and values that are one value; a gate cut off the grid of tiles.
    let h = g.norm(x, "rms", true, false, None);
    let a = g.attention((h, Some(h), Some(h)), [4, 4, dim], 0, json!({}));
    x = g.add(a, x);
    let both = g.linear(x, 2 * 40, true);
    let (up, gate) = (g.slice(both, 0, 40), g.slice(both, 40, 40));
    let f = g.gated(gate, up, "gelu");
    let f = g.linear(f, width, false);
    x = g.add(x, f);
    let twice = g.add(x, x);
    let h = g.norm(twice, "layer", true, false, None);
    let logits = g.linear(h, vocab, true);
    g.op("softcap", vocab, json!({"x": logits, "cap": 5.0}));
    g.finish(vocab, 1024)
}

/// Every kind of model, with several kinds of weights.
pub fn models() -> Vec<(String, Model)> {
    let mut all = Vec::new();
    for made in [
        Made::Dense(DenseType::F32),
        Made::Dense(DenseType::Bf16),
        Made::Palette(Kind::P4),
        Made::Palette(Kind::P8),
        Made::Mixed,
    ] {
        all.push((format!("llama {made:?}"), llama(made, 2)));
        all.push((format!("openelm {made:?}"), openelm(made)));
        all.push((format!("everything {made:?}"), everything(made)));
    }
    for (made, rank) in [(Made::Dense(DenseType::Bf16), 16), (Made::Palette(Kind::P8), 5), (Made::Mixed, 33)]
    {
        all.push((format!("llama {made:?} rank {rank}"), adapted_llama(made, 2, rank)));
        all.push((format!("openelm {made:?} rank {rank}"), adapted_openelm(made, rank)));
        all.push((format!("everything {made:?} rank {rank}"), adapted_everything(made, rank)));
    }
    all
}

pub fn ids(count: usize, limit: usize, seed: u64) -> Vec<u32> {
    let mut random = Random(seed);
    (0..count).map(|_| random.below(limit) as u32).collect()
}
