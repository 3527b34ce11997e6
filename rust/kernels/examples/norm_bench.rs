//! Times the 113 normalisations of one decode step of OpenELM 1.1B on one thread, alone:
//! `cargo run --release -p pocketlm-kernels --example norm_bench naive|fused`.
//!
//! `naive` goes over the row once per operation, as a graph of elementary operations does: add the residual, square, sum,
//! multiply by the reciprocal root, multiply by the weights, quantize. `fused` calls the kernels that the engine calls.
//! Both must agree. Prints how many there are and the microseconds of a step; `benches/norm.py` sets them beside a whole step.

use std::hint::black_box;

use pocketlm_kernels::{Kernels, Norm, NormKind, QuantBuffer};
use shared::{fastest, values};

mod shared;

const WIDTH: usize = 2048;
const HEAD_DIM: usize = 64;
const EPS: f32 = 1e-6;
/// Query heads of the layers, as published; a quarter as many heads of keys.
const HEADS: [(usize, usize); 5] = [(16, 3), (20, 7), (24, 8), (28, 6), (32, 4)];

/// Each statement is a pass of its own over memory; the buffers between are kept, so none is allocated.
fn naive(x: &[f32], weight: &[f32], squares: &mut [f32], out: &mut [f32]) {
    squares.iter_mut().zip(x).for_each(|(s, x)| *s = x * x);
    let mut lanes = [0.0f32; 16]; // so that the compiler can use vectors here too
    for chunk in black_box(&*squares).chunks_exact(16) {
        lanes.iter_mut().zip(chunk).for_each(|(l, s)| *l += s);
    }
    let factor = (lanes.iter().sum::<f32>() / x.len() as f32 + EPS).sqrt().recip();
    squares.iter_mut().zip(x).for_each(|(s, x)| *s = x * black_box(factor));
    out.iter_mut().zip(black_box(&*squares)).zip(weight).for_each(|((o, s), w)| *o = s * w);
}

struct Step<'a> {
    kernels: &'a Kernels,
    weight: Vec<f32>,
    delta: Vec<f32>,
    x: Vec<f32>,
    heads: Vec<f32>,
    squares: Vec<f32>,
    out: Vec<f32>,
    row: QuantBuffer,
}

/// The norm that both forms are of.
fn norm(weight: &[f32]) -> Norm<'_> {
    Norm { kind: NormKind::Rms, eps: EPS, weight: Some(weight), bias: None, offset: 0.0 }
}

impl Step<'_> {
    fn wide(&mut self, fused: bool) {
        let mut rows = self.row.as_rows_mut();
        if fused {
            let (norm, mut row) = (norm(&self.weight), rows.row_mut(0));
            let delta = Some(&self.delta[..]);
            self.kernels.add_norm_quantize(&norm, &mut self.x, delta, None, row.as_mut()).expect("fitting");
        } else {
            self.x.iter_mut().zip(&self.delta).for_each(|(x, d)| *x += d);
            naive(&self.x, &self.weight, &mut self.squares, &mut self.out);
            self.kernels.quantize(&self.out, &mut rows.row_mut(0).expect("a row")).expect("fitting");
        }
    }

    fn heads(&mut self, count: usize, fused: bool) {
        let mut heads = std::mem::take(&mut self.heads);
        let used = &mut heads[..count * HEAD_DIM];
        if fused {
            self.kernels.norm_heads(&norm(&self.weight[..HEAD_DIM]), used, HEAD_DIM).expect("fitting");
        } else {
            for head in used.chunks_exact_mut(HEAD_DIM) {
                let (squares, out) = (&mut self.squares[..HEAD_DIM], &mut self.out[..HEAD_DIM]);
                naive(head, &self.weight[..HEAD_DIM], squares, out);
                head.copy_from_slice(out);
            }
        }
        self.heads = heads;
    }

    /// One decode step; returns how many normalisations it has.
    fn run(&mut self, fused: bool) -> usize {
        let mut count = 1;
        for (heads, layers) in HEADS {
            for _ in 0..layers {
                self.wide(fused);
                self.heads(heads, fused);
                self.heads(heads / 4, fused);
                self.wide(fused);
                count += 4;
            }
        }
        self.wide(fused);
        count
    }
}

fn main() {
    let fused = match std::env::args().nth(1).as_deref() {
        Some("fused") => true,
        Some("naive") => false,
        _ => {
            eprintln!("norm_bench naive|fused");
            std::process::exit(2);
        }
    };
    let mut step = Step {
        kernels: Kernels::best().expect("a level"),
        weight: values(WIDTH),
        delta: vec![0.0; WIDTH],
        x: values(WIDTH),
        heads: values(32 * HEAD_DIM),
        squares: vec![0.0; WIDTH],
        out: vec![0.0; WIDTH],
        row: QuantBuffer::new(1, WIDTH).expect("a row"),
    };
    check(&mut step);
    let mut count = 0;
    let seconds = fastest(0.5, || count = step.run(fused));
    println!("{count} {:.2}", seconds * 1e6);
}

/// Both forms of a norm are the same but for roundings; panics where they are not.
fn check(step: &mut Step<'_>) {
    let [fused, naive] = [true, false].map(|fused| {
        step.x = values(WIDTH);
        step.heads = values(32 * HEAD_DIM);
        step.wide(fused);
        step.heads(32, fused);
        let row = step.row.as_rows_mut().row_mut(0).expect("a row").values[..WIDTH].to_vec();
        (row, std::mem::take(&mut step.heads))
    });
    step.heads = values(32 * HEAD_DIM);
    assert!(fused.0.iter().zip(&naive.0).all(|(a, b)| a.abs_diff(*b) <= 1), "rows differ");
    assert!(
        fused.1.iter().zip(&naive.1).all(|(a, b)| (a - b).abs() <= 1e-5 * b.abs().max(1.0)),
        "heads differ"
    );
}
