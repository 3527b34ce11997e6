//! The operations, field by field as in `pocketlm.graph`.

use pocketlm_kernels::{Activation, NormKind};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

/// A tensor of the checkpoint: its name there and the shape that it must have.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Weight {
    /// Name in the checkpoint.
    pub name: String,
    /// Logical shape; [outputs, inputs] for a matrix.
    pub shape: Vec<usize>,
    /// Stored as [inputs, outputs].
    #[serde(default)]
    pub transposed: bool,
    /// The tensor whose bytes this one repeats.
    #[serde(default)]
    pub shared_with: Option<String>,
}

/// Rotary position embedding.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Rotary {
    /// Inverse frequencies in radians per token, one for each rotated pair.
    pub frequencies: Vec<f64>,
    /// Factor on cosine and sine.
    #[serde(default = "one")]
    pub scale: f64,
    /// Pairs are (2i, 2i + 1) rather than (i, i + n/2).
    #[serde(default)]
    pub interleaved: bool,
}

fn one() -> f64 {
    1.0
}

/// A function or kind by the name that the kernels give it.
fn named<'de, D: Deserializer<'de>, T>(
    deserializer: D,
    what: &str,
    from_name: impl Fn(&str) -> Option<T>,
) -> Result<T, D::Error> {
    let name = String::deserialize(deserializer)?;
    from_name(&name).ok_or_else(|| D::Error::custom(format!("unknown {what} {name:?}")))
}

fn activation<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Activation, D::Error> {
    named(deserializer, "activation", Activation::from_name)
}

fn norm_kind<'de, D: Deserializer<'de>>(deserializer: D) -> Result<NormKind, D::Error> {
    named(deserializer, "norm", |name| NormKind::ALL.into_iter().find(|kind| kind.name() == name))
}

/// One operation.
#[derive(Debug, Clone, Deserialize)]
pub struct Op {
    /// The site's canonical name.
    pub name: String,
    /// Channels of the result.
    pub width: usize,
    /// What it does.
    #[serde(flatten)]
    pub kind: OpKind,
}

/// What an operation does. Operands are indices of earlier operations.
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum OpKind {
    /// Rows of the weight at the token ids, times `scale`.
    Embed {
        /// [vocabulary, width]
        weight: Weight,
        /// Factor.
        #[serde(default = "one")]
        scale: f64,
    },
    /// Rows of the weight at the tokens' positions.
    Positions {
        /// [context, width]
        weight: Weight,
    },
    /// RMSNorm or LayerNorm over channels, or over each run of `group` channels.
    Norm {
        /// Operand.
        x: usize,
        /// Which.
        #[serde(deserialize_with = "norm_kind")]
        norm: NormKind,
        /// Added to the mean square, or to the variance.
        eps: f64,
        /// `[width]` or `[group]`.
        weight: Option<Weight>,
        /// As the weight.
        bias: Option<Weight>,
        /// Added to the weight.
        #[serde(default)]
        offset: f64,
        /// Channels of a run.
        group: Option<usize>,
    },
    /// `x @ weight.T + bias`.
    Linear {
        /// Operand.
        x: usize,
        /// `[width, inputs]`
        weight: Weight,
        /// `[width]`
        bias: Option<Weight>,
    },
    /// Channels `start..start + width`.
    Slice {
        /// Operand.
        x: usize,
        /// First channel.
        start: usize,
    },
    /// Rotates each head by its token's position.
    Rope {
        /// Operand.
        x: usize,
        /// Channels of a head.
        head_dim: usize,
        /// Which of the graph's.
        rotary: usize,
    },
    /// Causal grouped-query attention.
    Attention(AttentionOp),
    /// `a + b`.
    Add {
        /// Operand.
        a: usize,
        /// Operand.
        b: usize,
    },
    /// `activation(x)`.
    Activation {
        /// Operand.
        x: usize,
        /// Which.
        #[serde(deserialize_with = "activation")]
        activation: Activation,
    },
    /// `activation(gate) * up`.
    Gated {
        /// Operand.
        gate: usize,
        /// Operand.
        up: usize,
        /// Which.
        #[serde(deserialize_with = "activation")]
        activation: Activation,
    },
    /// `x * factor`.
    Scale {
        /// Operand.
        x: usize,
        /// Factor.
        factor: f64,
    },
    /// `cap * tanh(x / cap)`.
    Softcap {
        /// Operand.
        x: usize,
        /// Limit.
        cap: f64,
    },
    /// `x` limited to [-limit, limit].
    Clip {
        /// Operand.
        x: usize,
        /// Limit.
        limit: f64,
    },
}

/// Causal grouped-query attention over the cache of a layer.
#[derive(Debug, Clone, Deserialize)]
pub struct AttentionOp {
    /// [tokens, heads * head_dim]
    pub q: usize,
    /// [tokens, kv_heads * head_dim], or none where an earlier layer wrote the cache.
    pub k: Option<usize>,
    /// As `k`.
    pub v: Option<usize>,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Channels of a head.
    pub head_dim: usize,
    /// Factor on scores.
    pub scale: f64,
    /// Which cache.
    pub cache: usize,
    /// Tokens seen, the own included.
    pub window: Option<usize>,
    /// Scores pass through `softcap * tanh(s / softcap)`.
    pub softcap: Option<f64>,
}

impl Op {
    /// Operands, in the order of the fields.
    pub fn inputs(&self) -> impl Iterator<Item = usize> + use<> {
        let list: [Option<usize>; 3] = match &self.kind {
            OpKind::Embed { .. } | OpKind::Positions { .. } => [None; 3],
            OpKind::Norm { x, .. }
            | OpKind::Linear { x, .. }
            | OpKind::Slice { x, .. }
            | OpKind::Rope { x, .. }
            | OpKind::Activation { x, .. }
            | OpKind::Scale { x, .. }
            | OpKind::Softcap { x, .. }
            | OpKind::Clip { x, .. } => [Some(*x), None, None],
            OpKind::Attention(attention) => [Some(attention.q), attention.k, attention.v],
            OpKind::Add { a, b } => [Some(*a), Some(*b), None],
            OpKind::Gated { gate, up, .. } => [Some(*gate), Some(*up), None],
        };
        list.into_iter().flatten()
    }

    /// Tensors that it reads.
    pub fn weights(&self) -> impl Iterator<Item = &Weight> {
        let list: [Option<&Weight>; 2] = match &self.kind {
            OpKind::Embed { weight, .. } | OpKind::Positions { weight } => [Some(weight), None],
            OpKind::Norm { weight, bias, .. } => [weight.as_ref(), bias.as_ref()],
            OpKind::Linear { weight, bias, .. } => [Some(weight), bias.as_ref()],
            _ => [None; 2],
        };
        list.into_iter().flatten()
    }
}
