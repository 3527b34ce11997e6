//! Operations on one row, and sampling.

use pocketlm_kernels::sample::{Sampler, SamplingParams};
use pocketlm_kernels::{Activation, KV_TOKENS, Kernels, KvBlockMut, Level, Norm, NormKind, QuantBuffer};

use super::shared::{fastest, values};
use super::wanted;

const N: usize = 2048;
const HEAD: usize = 64;
const TIMES: usize = 100;

/// What the operations write.
struct State {
    x: Vec<f32>,
    heads: Vec<f32>,
    buffer: QuantBuffer,
    halves: [Vec<u16>; 2],
    bytes: [Vec<i8>; 2],
    scales: [[f32; KV_TOKENS]; 2],
}

impl State {
    fn new() -> State {
        State {
            x: values(N),
            heads: values(N),
            buffer: QuantBuffer::new(1, N).unwrap(),
            halves: [vec![0; KV_TOKENS * HEAD], vec![0; KV_TOKENS * HEAD]],
            bytes: [vec![0; KV_TOKENS * HEAD], vec![0; KV_TOKENS * HEAD]],
            scales: [[0.0; KV_TOKENS]; 2],
        }
    }

    /// All of it, bit for bit.
    fn bits(mut self) -> Vec<u32> {
        let mut rows = self.buffer.as_rows_mut();
        let row = rows.row_mut(0).unwrap();
        let floats = [&self.x[..], &self.heads, row.scales, &self.scales[0], &self.scales[1]];
        let mut found: Vec<u32> = floats.into_iter().flatten().map(|v| v.to_bits()).collect();
        found.extend(row.values.iter().map(|v| *v as u32));
        found.extend(row.sums.iter().map(|v| *v as u32));
        found.extend(self.halves.iter().flatten().map(|v| u32::from(*v)));
        found.extend(self.bytes.iter().flatten().map(|v| *v as u32));
        found
    }
}

/// Times an operation, whose results must be the scalar level's; panics where they are not.
fn report(k: &Kernels, filters: &[String], name: &str, run: &dyn Fn(&Kernels, &mut State)) {
    if !wanted(filters, &format!("rows {name}"), k.level()) {
        return;
    }
    let [found, expected] = [k, Kernels::get(Level::Scalar).unwrap()].map(|kernels| {
        let mut state = State::new();
        run(kernels, &mut state);
        state.bits()
    });
    assert!(found == expected, "{name} at {} differs from scalar", k.level());
    let mut state = State::new();
    let seconds = fastest(0.2, || (0..TIMES).for_each(|_| run(k, &mut state)));
    println!("{:12} {name} of {N}: {:.0} ns", k.level().name(), seconds / TIMES as f64 * 1e9);
}

pub fn rows(k: &Kernels, filters: &[String]) {
    let (delta, weight) = (vec![0.0; N], values(N));
    let norm = Norm { kind: NormKind::Rms, eps: 1e-5, weight: Some(&weight), bias: None, offset: 0.0 };
    report(k, filters, "add_norm_quantize", &|k, s| {
        let mut rows = s.buffer.as_rows_mut();
        k.add_norm_quantize(&norm, &mut s.x, Some(&delta), None, rows.row_mut(0).as_mut()).unwrap();
    });
    report(k, filters, "quantize", &|k, s| {
        k.quantize(&weight, &mut s.buffer.as_rows_mut().row_mut(0).unwrap()).unwrap();
    });
    for a in [Activation::Silu, Activation::Gelu, Activation::GeluTanh] {
        report(k, filters, &format!("gated {}", a.name()), &|k, s| {
            k.gated(a, &weight, &weight, &mut s.x).unwrap();
        });
    }
    report(k, filters, "norm_heads of 64,", &|k, s| {
        k.norm_heads(&Norm { weight: Some(&weight[..HEAD]), ..norm }, &mut s.heads, HEAD).unwrap();
    });
    let (cos, sin) = (vec![0.6; HEAD / 2], vec![0.8; HEAD / 2]);
    for (name, interleaved) in [("halves", false), ("interleaved", true)] {
        report(k, filters, &format!("rope {name} of 64,"), &|k, s| {
            k.rope(&mut s.heads, HEAD, &cos, &sin, interleaved).unwrap();
        });
    }
    report(k, filters, "kv_write f16 of 32 heads of 64,", &|k, s| {
        let [keys, vals] = &mut s.halves;
        for i in 0..N / HEAD {
            k.kv_write(&weight[..HEAD], &weight[..HEAD], KvBlockMut::F16 { k: keys, v: vals }, i).unwrap();
        }
    });
    report(k, filters, "kv_write int8 of 32 heads of 64,", &|k, s| {
        let ([keys, vals], [k_scales, v_scales]) = (&mut s.bytes, &mut s.scales);
        for i in 0..N / HEAD {
            let block = KvBlockMut::I8 { k: keys, v: vals, k_scales, v_scales };
            k.kv_write(&weight[..HEAD], &weight[..HEAD], block, i).unwrap();
        }
    });
}

pub fn sampling(k: &Kernels, filters: &[String]) {
    for vocabulary in [32_000, 128_256] {
        let logits: Vec<f32> =
            values(vocabulary).iter().map(|v| v * 8.0 - (1.0001 - v.abs()).ln() * 3.0).collect();
        for (name, params) in [
            ("greedy", SamplingParams { temperature: 0.0, ..Default::default() }),
            ("temperature", SamplingParams::default()),
            ("top_k 50", SamplingParams { top_k: 50, ..Default::default() }),
            ("top_p 0.9", SamplingParams { top_p: 0.9, ..Default::default() }),
            ("logprobs 5", SamplingParams { temperature: 0.0, logprobs: Some(5), ..Default::default() }),
        ] {
            if !wanted(filters, &format!("sampling {name}"), k.level()) {
                continue;
            }
            let [found, expected] = [k, Kernels::get(Level::Scalar).unwrap()].map(|kernels| {
                let mut sampler = Sampler::new(params.clone(), &[]).unwrap();
                (1..9).map(|at| sampler.sample(kernels, &logits, at).unwrap()).collect::<Vec<_>>()
            });
            assert!(found == expected, "sample {name} at {} differs from scalar", k.level());
            let mut sampler = Sampler::new(params, &[]).unwrap();
            let mut position = 0;
            let t = fastest(0.2, || {
                position += 1;
                sampler.sample(k, &logits, position).unwrap();
            });
            println!("{:12} sample {name} of {vocabulary}: {:.1} us", k.level().name(), t * 1e6);
        }
    }
}
