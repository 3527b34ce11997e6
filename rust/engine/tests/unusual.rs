//! Graphs that no family makes: they run, or are refused by a message that names the weight.

mod common;

use std::sync::Arc;

use common::{Build, Made, Model, all_logits, ids, options};
use pocketlm_engine::store::{DenseType, Kind};
use pocketlm_engine::{Engine, EngineError, EngineOptions};
use serde_json::{Value, json};

/// Logits of a prompt at once, on one thread and on two, are those of its tokens one by one.
fn check(model: &Model) {
    let prompt = ids(30, 40, 1);
    let one = model.engine(&options(1));
    let sequence = one.sequence().unwrap();
    let single: Vec<u32> = prompt.iter().flat_map(|&id| all_logits(&one, &sequence, &[id])).collect();
    for threads in [1, 2] {
        let engine = model.engine(&options(threads));
        for chunk in [2, 16, 30] {
            let sequence = engine.sequence().unwrap();
            let found: Vec<u32> =
                prompt.chunks(chunk).flat_map(|ids| all_logits(&engine, &sequence, ids)).collect();
            assert!(found == single, "{threads} threads, chunks of {chunk}");
        }
    }
}

#[test]
fn products_of_few_inputs_and_many_outputs() {
    for made in [Made::Dense(DenseType::Bf16), Made::Dense(DenseType::F32), Made::Palette(Kind::P2)] {
        for inputs in [1, 2, 5] {
            let mut g = Build::new(made, 7);
            let table = g.matrix(40, inputs);
            let x = g.op("embed", inputs, json!({"weight": table, "scale": 1.0}));
            g.linear(x, 6500, false);
            check(&g.finish(6500, 64));
        }
    }
}

#[test]
fn gate_and_partner_of_different_kinds_off_the_grid_of_tiles() {
    // Matrices take turns: this one is skipped so that the gate is palettized and its partner dense, or the other way round.
    for skipped in 0..4 {
        let mut g = Build::new(Made::Mixed, 8);
        let table = g.matrix(40, 24);
        let x = g.op("embed", 24, json!({"weight": table, "scale": 1.0}));
        for _ in 0..skipped {
            g.matrix(1, 1);
        }
        let (gate, up) = (g.linear(x, 45, true), g.linear(x, 45, false));
        let h = g.gated(gate, up, "silu");
        g.linear(h, 50, false);
        check(&g.finish(50, 64));
    }
}

#[test]
fn a_sum_into_a_slice_beside_the_input_of_its_product() {
    for made in [Made::Dense(DenseType::F32), Made::Palette(Kind::P4)] {
        let mut g = Build::new(made, 9);
        let table = g.matrix(40, 96);
        let both = g.op("embed", 96, json!({"weight": table, "scale": 1.0}));
        let (left, right) = (g.slice(both, 0, 48), g.slice(both, 48, 48));
        let y = g.linear(left, 48, false);
        let sum = g.add(right, y);
        g.linear(sum, 41, false);
        check(&g.finish(41, 64));
    }
}

/// An engine of a graph that declares the weight a second time, in another shape.
fn declared_twice(vector: bool) -> Result<Engine, EngineError> {
    let mut g = Build::new(Made::Dense(DenseType::F32), 10);
    let table = g.matrix(40, 24);
    let x = g.op("embed", 24, json!({"weight": table, "scale": 1.0}));
    let gain = g.vector(24, 1.0);
    let x = g.op("norm", 24, json!({"x": x, "norm": "rms", "eps": 1e-5, "weight": gain, "offset": 0.0}));
    let again = |weight: &Value, shape: &[usize]| json!({"name": weight["name"], "shape": shape});
    if vector {
        let head = g.matrix(50, 24);
        g.op("linear", 50, json!({"x": x, "weight": head, "bias": again(&gain, &[50])}));
    } else {
        g.op("linear", 50, json!({"x": x, "weight": again(&table, &[50, 24])}));
    }
    let Model { graph, store } = g.finish(50, 64);
    Engine::new(graph, Arc::clone(&store), &options(1))
}

#[test]
fn a_weight_declared_in_two_shapes_is_refused() {
    for (vector, name) in [(false, "matrix.0"), (true, "vector.1")] {
        let Err(error) = declared_twice(vector) else { panic!("a weight has two shapes") };
        let message = error.to_string();
        assert!(message.contains(name) && message.contains("[50"), "{message}");
    }
}

#[test]
fn a_trace_beyond_max_memory_is_refused() {
    let model = common::llama(Made::Palette(Kind::P4), 2);
    let needed = model.engine(&options(1)).memory().total();
    let with = |room: u64| {
        let engine = model.engine(&EngineOptions { max_memory: Some(needed + room), ..options(1) });
        engine.trace(&ids(400, 211, 2), None).map(|traced| traced.len())
    };
    assert!(matches!(with(0), Err(EngineError::Memory { .. })));
    // Results alone take more than this: 400 tokens, and more than 2,000 channels.
    assert!(matches!(with(3_000_000), Err(EngineError::Memory { .. })));
    assert_eq!(with(1 << 30), Ok(model.graph.ops.len()));
}
