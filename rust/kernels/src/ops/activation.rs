//! Activation functions, alone and gating a second projection (arXiv 2002.05202).

use super::elementwise::map_in_place;
use super::math;
use crate::simd::{LANES, Simd};

/// An elementwise nonlinearity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Activation {
    /// `x / (1 + e^-x)`.
    Silu,
    /// `x Φ(x)`.
    Gelu,
    /// The tanh approximation of [`Activation::Gelu`].
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
    /// `max(x, 0)²`.
    Relu2,
}

impl Activation {
    /// All activations.
    pub const ALL: [Activation; 5] =
        [Activation::Silu, Activation::Gelu, Activation::GeluTanh, Activation::Relu, Activation::Relu2];

    /// The name in graphs and in the registry.
    pub const fn name(self) -> &'static str {
        match self {
            Activation::Silu => "silu",
            Activation::Gelu => "gelu",
            Activation::GeluTanh => "gelu_tanh",
            Activation::Relu => "relu",
            Activation::Relu2 => "relu2",
        }
    }

    /// The activation of that name.
    pub fn from_name(name: &str) -> Option<Activation> {
        Self::ALL.into_iter().find(|a| a.name() == name)
    }
}

/// An activation as a type, so that each gets loops of its own.
trait Function {
    fn of<S: Simd>(s: S, x: S::F) -> S::F;
}

macro_rules! functions {
    ($($name:ident, $s:ident, $x:ident => $e:expr;)*) => {$(
        struct $name;
        impl Function for $name {
            #[inline(always)]
            fn of<S: Simd>($s: S, $x: S::F) -> S::F {
                $e
            }
        }
    )*};
}

functions! {
    Silu, s, x => math::silu(s, x);
    Gelu, s, x => math::gelu(s, x);
    GeluTanh, s, x => math::gelu_tanh(s, x);
    // NaN passes as the second operand.
    Relu, s, x => s.max(s.zero(), x);
    Relu2, s, x => { let r = s.max(s.zero(), x); s.mul(r, r) };
}

#[inline(always)]
fn activate<S: Simd, A: Function>(s: S, x: &mut [f32]) {
    map_in_place!(s, x, v => A::of(s, v));
}

#[inline(always)]
fn gated<S: Simd, A: Function>(s: S, gate: &[f32], up: &[f32], out: &mut [f32]) {
    let ((gates, gate_rest), (ups, up_rest)) = (gate.as_chunks::<LANES>(), up.as_chunks::<LANES>());
    let (outs, out_rest) = out.as_chunks_mut::<LANES>();
    for ((g, u), o) in gates.iter().zip(ups).zip(outs) {
        s.store(o, s.mul(A::of(s, s.load(g)), s.load(u)));
    }
    if !out_rest.is_empty() {
        s.store_part(out_rest, s.mul(A::of(s, s.load_part(gate_rest)), s.load_part(up_rest)));
    }
}

instantiate! {
    Activate, "silu", "row" => silu = activate::<_, Silu>, (x: &mut [f32]);
    Activate, "gelu", "row" => gelu = activate::<_, Gelu>, (x: &mut [f32]);
    Activate, "gelu_tanh", "row" => gelu_tanh = activate::<_, GeluTanh>, (x: &mut [f32]);
    Activate, "relu", "row" => relu = activate::<_, Relu>, (x: &mut [f32]);
    Activate, "relu2", "row" => relu2 = activate::<_, Relu2>, (x: &mut [f32]);
    Gated, "silu", "row" => gated_silu = gated::<_, Silu>, (gate: &[f32], up: &[f32], out: &mut [f32]);
    Gated, "gelu", "row" => gated_gelu = gated::<_, Gelu>, (gate: &[f32], up: &[f32], out: &mut [f32]);
    Gated, "gelu_tanh", "row" => gated_gelu_tanh = gated::<_, GeluTanh>, (gate: &[f32], up: &[f32], out: &mut [f32]);
    Gated, "relu", "row" => gated_relu = gated::<_, Relu>, (gate: &[f32], up: &[f32], out: &mut [f32]);
    Gated, "relu2", "row" => gated_relu2 = gated::<_, Relu2>, (gate: &[f32], up: &[f32], out: &mut [f32]);
}
