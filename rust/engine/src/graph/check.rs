//! Validation of a graph: after it, no index is out of range and no width is inconsistent.

use std::collections::BTreeMap;

use pocketlm_kernels::MAX_HEAD_DIM;

use super::{AttentionOp, Graph, Op, OpKind, Rotary, Weight};
use crate::error::EngineError;

/// Limits far beyond any model of this size class, so that products of a few sizes cannot overflow.
const MAX_WIDTH: usize = 1 << 24;
const MAX_OPS: usize = 1 << 14;
const MAX_CONTEXT: usize = 1 << 28;

/// Key and value heads and head size of the caches seen so far.
type Caches = BTreeMap<usize, (usize, usize)>;

pub(super) fn check(graph: &Graph) -> Result<(), EngineError> {
    let header = |field: &str, reason: String| Err(EngineError::graph(field, reason));
    if graph.ops.is_empty() || graph.ops.len() > MAX_OPS {
        return header("ops", format!("{} operations, must be 1 to {MAX_OPS}", graph.ops.len()));
    }
    if graph.vocab_size == 0 || graph.vocab_size > MAX_WIDTH {
        return header("vocab_size", format!("{}, must be 1 to {MAX_WIDTH}", graph.vocab_size));
    }
    if graph.context_length == 0 || graph.context_length > MAX_CONTEXT {
        return header("context_length", format!("{}, must be 1 to {MAX_CONTEXT}", graph.context_length));
    }
    let mut caches = Caches::new();
    for (index, op) in graph.ops.iter().enumerate() {
        check_op(graph, index, op, &mut caches).map_err(|reason| EngineError::graph(&op.name, reason))?;
    }
    let last = &graph.ops[graph.ops.len() - 1];
    if last.width != graph.vocab_size {
        let reason = format!("yields {} logits, vocab_size is {}", last.width, graph.vocab_size);
        return Err(EngineError::graph(&last.name, reason));
    }
    Ok(())
}

fn check_op(graph: &Graph, index: usize, op: &Op, caches: &mut Caches) -> Result<(), String> {
    if op.width == 0 || op.width > MAX_WIDTH {
        return Err(format!("width {}, must be 1 to {MAX_WIDTH}", op.width));
    }
    if let Some(input) = op.inputs().find(|&input| input >= index) {
        return Err(format!("reads operation {input}, which is not before it ({index})"));
    }
    let width = |operand: usize| graph.ops[operand].width;
    let same = |operand: usize| expect("operand width", width(operand), op.width);
    match &op.kind {
        OpKind::Embed { weight, scale } => {
            finite("scale", *scale)?;
            // A table may have more rows than there are logits (padding) or fewer (Phi-2 pads the head alone).
            shape(weight, &[weight.shape.first().copied().unwrap_or(0), op.width])?;
            straight(weight)
        }
        OpKind::Positions { weight } => {
            if weight.shape.first().is_none_or(|&rows| rows < graph.context_length) {
                return Err(format!("table {:?} is shorter than the context", weight.shape));
            }
            shape(weight, &[weight.shape[0], op.width])?;
            straight(weight)
        }
        OpKind::Norm { x, eps, weight, bias, offset, group, .. } => {
            same(*x)?;
            finite("offset", *offset)?;
            if !(eps.is_finite() && *eps >= 0.0) {
                return Err(format!("eps {eps} must be finite and not negative"));
            }
            let run = group.unwrap_or(op.width);
            divides("group", run, op.width)?;
            if run != op.width && run > MAX_HEAD_DIM {
                return Err(format!("group {run}, must be {MAX_HEAD_DIM} or less"));
            }
            weight.iter().chain(bias).try_for_each(|vector| shape(vector, &[run]))
        }
        OpKind::Linear { x, weight, bias } => {
            shape(weight, &[op.width, width(*x)])?;
            bias.iter().try_for_each(|vector| shape(vector, &[op.width]))
        }
        OpKind::Slice { x, start } => match start.checked_add(op.width) {
            Some(end) if end <= width(*x) => Ok(()),
            _ => Err(format!("channels from {start} on, {} of them, of {}", op.width, width(*x))),
        },
        OpKind::Rope { x, head_dim, rotary } => {
            same(*x)?;
            divides("head_dim", *head_dim, op.width)?;
            let rotary = graph.rotaries.get(*rotary).ok_or_else(|| format!("there is no rotary {rotary}"))?;
            check_rotary(rotary, *head_dim)
        }
        OpKind::Attention(attention) => check_attention(graph, op, attention, caches),
        OpKind::Add { a, b } => same(*a).and_then(|()| same(*b)),
        OpKind::Gated { gate, up, .. } => same(*gate).and_then(|()| same(*up)),
        OpKind::Activation { x, .. } => same(*x),
        OpKind::Scale { x, factor } => same(*x).and_then(|()| finite("factor", *factor)),
        OpKind::Softcap { x, cap: limit } | OpKind::Clip { x, limit } => {
            same(*x)?;
            positive("limit", *limit)
        }
    }
}

fn check_rotary(rotary: &Rotary, head_dim: usize) -> Result<(), String> {
    finite("rotary scale", rotary.scale)?;
    if head_dim > MAX_HEAD_DIM || rotary.frequencies.is_empty() || rotary.frequencies.len() > head_dim / 2 {
        return Err(format!("{} rotated pairs in a head of {head_dim}", rotary.frequencies.len()));
    }
    rotary.frequencies.iter().try_for_each(|&frequency| finite("frequency", frequency))
}

fn check_attention(
    graph: &Graph,
    op: &Op,
    attention: &AttentionOp,
    caches: &mut Caches,
) -> Result<(), String> {
    let AttentionOp { q, k, v, heads, kv_heads, head_dim, scale, cache, window, softcap } = attention;
    if *head_dim == 0 || *head_dim > MAX_HEAD_DIM {
        return Err(format!("head_dim {head_dim}, must be 1 to {MAX_HEAD_DIM}"));
    }
    divides("kv_heads", *kv_heads, *heads)?;
    let size =
        |heads: usize| heads.checked_mul(*head_dim).ok_or_else(|| "heads * head_dim overflows".to_owned());
    expect("width", op.width, size(*heads)?)?;
    expect("q width", graph.ops[*q].width, op.width)?;
    finite("scale", *scale)?;
    softcap.map_or(Ok(()), |cap| positive("softcap", cap))?;
    if *window == Some(0) {
        return Err("a window of no tokens".into());
    }
    match (k, v) {
        (Some(k), Some(v)) => {
            let kv = size(*kv_heads)?;
            expect("k width", graph.ops[*k].width, kv)?;
            expect("v width", graph.ops[*v].width, kv)?;
            match caches.insert(*cache, (*kv_heads, *head_dim)) {
                Some(_) => Err(format!("cache {cache} is written twice")),
                None => Ok(()),
            }
        }
        (None, None) if caches.get(cache) == Some(&(*kv_heads, *head_dim)) => Ok(()),
        (None, None) => Err(format!("no earlier layer wrote cache {cache} with these heads")),
        _ => Err("k and v must both be given, or neither".into()),
    }
}

fn expect(what: &str, found: usize, wanted: usize) -> Result<(), String> {
    if found == wanted { Ok(()) } else { Err(format!("{what} is {found}, must be {wanted}")) }
}

fn divides(what: &str, part: usize, whole: usize) -> Result<(), String> {
    if part > 0 && whole > 0 && whole.is_multiple_of(part) {
        Ok(())
    } else {
        Err(format!("{what} {part} does not divide {whole}"))
    }
}

fn finite(what: &str, value: f64) -> Result<(), String> {
    if (value as f32).is_finite() { Ok(()) } else { Err(format!("{what} is {value}")) }
}

fn positive(what: &str, value: f64) -> Result<(), String> {
    if (value as f32) > 0.0 {
        finite(what, value)
    } else {
        Err(format!("{what} is {value}, must be positive"))
    }
}

fn shape(weight: &Weight, wanted: &[usize]) -> Result<(), String> {
    if weight.shape == wanted && wanted.iter().all(|&size| size > 0) {
        Ok(())
    } else {
        Err(format!("weight {:?} is declared as {:?}, must be {wanted:?}", weight.name, weight.shape))
    }
}

fn straight(weight: &Weight) -> Result<(), String> {
    if weight.transposed { Err(format!("table {:?} cannot be transposed", weight.name)) } else { Ok(()) }
}
