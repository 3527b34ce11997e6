//! What the executor takes for granted of a plan.

use serde_json::json;

use super::*;
use crate::common::{Build, Made, adapted_llama, adapted_openelm, llama, models, wide_llama};
use crate::store::{DenseType, Kind};

/// Every product reads whole rows of its input's buffer while others write: see `run::linear`.
fn check(name: &str, plan: &Plan) {
    for phase in &plan.phases {
        let Phase::Linear(parts) = phase else { continue };
        let factors = parts.iter().flat_map(|part| {
            let partner = match part.epilogue {
                Epilogue::Gated(up, _) => Some(up),
                _ => None,
            };
            [Some(part.factor), partner].into_iter().flatten()
        });
        for factor in factors {
            if let Some(plus) = factor.plus {
                assert!(parts.iter().all(|part| part.to.buffer != plus.buffer), "{name}: {parts:?}");
            }
            if let Input::Float(view) = factor.input {
                assert!(parts.iter().all(|part| part.to.buffer != view.buffer), "{name}: {parts:?}");
            }
        }
        for (index, part) in parts.iter().enumerate() {
            for other in &parts[index + 1..] {
                let apart = part.to.buffer != other.to.buffer
                    || part.to.start + part.to.width <= other.to.start
                    || other.to.start + other.to.width <= part.to.start;
                assert!(apart, "{name}: {parts:?}");
            }
        }
    }
}

#[test]
fn no_product_writes_into_a_buffer_that_its_phase_reads() {
    let mut all = models();
    for made in [Made::Dense(DenseType::F32), Made::Palette(Kind::P4)] {
        // A sum into a slice of the value that the product reads another slice of.
        let mut g = Build::new(made, 1);
        let table = g.matrix(10, 64);
        let both = g.op("embed", 64, json!({"weight": table}));
        let (left, right) = (g.slice(both, 0, 32), g.slice(both, 32, 32));
        let product = g.linear(left, 32, false);
        let sum = g.add(right, product);
        g.linear(sum, 10, false);
        all.push((format!("slices {made:?}"), g.finish(10, 64)));
    }
    for (name, model) in all {
        for precise in [false, true] {
            let options = Options { max_rows: 8, precise, trace: false, packs_rows: false };
            check(&name, &Plan::new(&model.graph, &model.store, options).unwrap());
        }
    }
}

#[test]
fn rows_are_packed_where_products_gain() {
    let plan = |made, max_rows, packs_rows| {
        let options = Options { max_rows, precise: false, trace: false, packs_rows };
        let model = wide_llama(made);
        Plan::new(&model.graph, &model.store, options).unwrap()
    };
    let bf16 = Made::Dense(DenseType::Bf16);
    let packed = plan(bf16, 96, true);
    let packing = packed.packing.unwrap();
    assert_eq!((packing.rows, packing.cols), (96, 2100));
    let inputs = |plan: &Plan, rows: usize| -> Vec<usize> {
        let phases = plan.phases.iter().filter_map(|phase| match phase {
            Phase::Linear(parts) => plan.packed_input(parts, rows).map(|view| view.width),
            _ => None,
        });
        phases.collect()
    };
    // Query, key and value; output; gate and up; down; all again; the head.
    assert_eq!(inputs(&packed, 32), [256, 256, 256, 2100, 256, 256, 256, 2100, 256]);
    assert!(inputs(&packed, 31).is_empty());
    assert_eq!(packed.arena_bytes, packing.end().unwrap());
    for (made, rows, packs) in [
        (bf16, 96, false),
        (bf16, 31, true),
        // Conversion of f16 takes less than packing so few.
        (Made::Dense(DenseType::F16), 96, true),
        (Made::Palette(Kind::P4), 96, true),
    ] {
        let other = plan(made, rows, packs);
        assert!(other.packing.is_none() && inputs(&other, rows).is_empty(), "{made:?}");
    }
    assert_eq!(plan(Made::Dense(DenseType::F16), 512, true).packing.unwrap().cols, 2100);
}

#[test]
fn room_for_packed_rows_is_enough_for_fewer_rows() {
    // Products of one phase that read two values: 128 rows of the narrower one gain, which comes first, and of fewer rows only the wider.
    let mut g = Build::new(Made::Dense(DenseType::F16), 1);
    let table = g.matrix(300, 256);
    let x = g.op("embed", 256, json!({"weight": table}));
    let (a, b) = (g.linear(x, 8192, false), g.linear(x, 16384, false));
    let (c, d) = (g.linear(a, 256, false), g.linear(b, 256, false));
    let sum = g.add(c, d);
    let q = g.attention((sum, Some(sum), Some(sum)), [8, 8, 32], 0, json!({}));
    g.linear(q, 300, false);
    let model = g.finish(300, 64);
    let options = Options { max_rows: 128, precise: false, trace: false, packs_rows: true };
    let plan = Plan::new(&model.graph, &model.store, options).unwrap();
    let mut seen = std::collections::BTreeSet::new();
    for phase in &plan.phases {
        let Phase::Linear(parts) = phase else { continue };
        for rows in 1..=128 {
            if let Some(view) = plan.packed_input(parts, rows) {
                let floats = pocketlm_kernels::PackedRows::floats(rows, view.width).unwrap();
                assert!(floats <= plan.packing.unwrap().floats, "{rows} rows of {}", view.width);
                seen.insert(view.width);
            }
        }
    }
    assert_eq!(seen, [8192, 16384].into());
}

#[test]
fn low_rank_terms_join_epilogues() {
    for rank in [16, 40] {
        for made in [Made::Dense(DenseType::F32), Made::Palette(Kind::P8)] {
            let pairs = [
                (adapted_llama(made, 2, 0), adapted_llama(made, 2, rank), 1),
                (adapted_openelm(made, 0), adapted_openelm(made, rank), 0),
            ];
            for (bare, adapted, heads) in pairs {
                let options = Options { max_rows: 8, precise: false, trace: false, packs_rows: false };
                let [bare, adapted] =
                    [bare, adapted].map(|model| Plan::new(&model.graph, &model.store, options).unwrap());
                let products = |plan: &Plan| {
                    plan.phases.iter().filter(|phase| matches!(phase, Phase::Linear(_))).count()
                };
                let attentions =
                    adapted.phases.iter().filter(|phase| matches!(phase, Phase::Attention(_))).count();
                // One phase more for each group of products: query, key and value; output; gate and up; down; and the head, where it
                // has a term.
                assert_eq!(products(&adapted), products(&bare) + 4 * attentions + heads);
                let apart = |op: &RowOp| {
                    matches!(op, RowOp::Add { .. } | RowOp::Gated { .. } | RowOp::Activate { .. })
                };
                for phase in &adapted.phases {
                    assert!(!matches!(phase, Phase::Rows(ops) if ops.iter().any(apart)), "{phase:?}");
                }
                check("adapted", &adapted);
            }
        }
    }
}

#[test]
fn a_layer_has_few_phases() {
    // Norm; rotation and cache; norm. Where products read int8, also quantization of what attention and the gate give. Between them
    // four groups of products, and attention. Sums and activations are in epilogues.
    for (made, rows) in [(Made::Dense(DenseType::F32), 3), (Made::Palette(Kind::P4), 5)] {
        let [fewer, more] = [2, 3].map(|layers| {
            let model = llama(made, layers);
            let options = Options { max_rows: 8, precise: false, trace: false, packs_rows: false };
            let plan = Plan::new(&model.graph, &model.store, options).unwrap();
            let of_rows = plan.phases.iter().filter(|phase| matches!(phase, Phase::Rows(_))).count();
            (of_rows, plan.phases.len() - of_rows)
        });
        assert_eq!((more.0 - fewer.0, more.1 - fewer.1), (rows, 5), "{made:?}");
    }
}
