//! What the executor takes for granted of a plan.

use serde_json::json;

use super::*;
use crate::common::{Build, Made, models};
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
            let options = Options { max_rows: 8, precise, trace: false };
            check(&name, &Plan::new(&model.graph, &model.store, options).unwrap());
        }
    }
}
