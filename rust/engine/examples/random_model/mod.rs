//! A Llama of any size with random palettized weights, made in memory: what the examples run.

use pocketlm_engine::EngineError;
use pocketlm_engine::graph::Graph;
use pocketlm_engine::store::{Kind, WeightStore};
use serde_json::{Value, json};

/// Sizes of a model and the kinds of its weights.
pub struct Shape {
    pub width: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub ffn: usize,
    pub vocab: usize,
    pub layers: usize,
    pub linear: Kind,
    pub embed: Kind,
}

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

    fn norm(&mut self, x: usize, width: usize) -> usize {
        self.op("norm", width, json!({"x": x, "norm": "rms", "eps": 1e-5}))
    }

    fn linear(&mut self, kind: Kind, x: usize, rows: usize, cols: usize) -> Result<usize, EngineError> {
        let weight = self.matrix(kind, rows, cols)?;
        Ok(self.op("linear", rows, json!({"x": x, "weight": weight})))
    }
}

/// The graph, with room for 131,072 positions, and its weights; the same shape gives the same bytes.
///
/// # Errors
/// [`EngineError`] where the sizes do not fit one another.
pub fn model(shape: &Shape) -> Result<(Graph, WeightStore), EngineError> {
    let &Shape { width, heads, kv_heads, head_dim, ffn, vocab, layers, linear, embed } = shape;
    let mut b = Builder { ops: Vec::new(), store: WeightStore::new(), seed: 0x1234_5678_9abc_def1 };
    let table = b.matrix(embed, vocab, width)?;
    let mut x = b.op("embed", width, json!({"weight": table}));
    let half = head_dim / 2;
    let frequencies: Vec<f64> = (0..half).map(|i| 5e5f64.powf(-(i as f64) / half as f64)).collect();
    for layer in 0..layers {
        let h = b.norm(x, width);
        let q = b.linear(linear, h, heads * head_dim, width)?;
        let k = b.linear(linear, h, kv_heads * head_dim, width)?;
        let v = b.linear(linear, h, kv_heads * head_dim, width)?;
        let rope = |x: usize| json!({"x": x, "head_dim": head_dim, "rotary": 0});
        let (q, k) = (b.op("rope", heads * head_dim, rope(q)), b.op("rope", kv_heads * head_dim, rope(k)));
        let a = json!({"q": q, "k": k, "v": v, "heads": heads, "kv_heads": kv_heads, "head_dim": head_dim,
            "scale": 1.0 / (head_dim as f64).sqrt(), "cache": layer});
        let a = b.op("attention", heads * head_dim, a);
        let o = b.linear(linear, a, width, heads * head_dim)?;
        x = b.op("add", width, json!({"a": x, "b": o}));
        let h = b.norm(x, width);
        let (gate, up) = (b.linear(linear, h, ffn, width)?, b.linear(linear, h, ffn, width)?);
        let h = b.op("gated", ffn, json!({"gate": gate, "up": up, "activation": "silu"}));
        let down = b.linear(linear, h, width, ffn)?;
        x = b.op("add", width, json!({"a": x, "b": down}));
    }
    let h = b.norm(x, width);
    b.op("linear", vocab, json!({"x": h, "weight": table}));
    let graph = json!({"model_type": "bench", "vocab_size": vocab, "context_length": 131_072,
        "rotaries": [{"frequencies": frequencies}], "ops": b.ops});
    Ok((Graph::parse(&graph.to_string())?, b.store))
}
