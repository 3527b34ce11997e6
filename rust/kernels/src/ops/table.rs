//! The float kernels of one level, taken from the registry.

use super::Activation;
use crate::cpu::Level;
use crate::formats::{DenseType, Kind};
use crate::kernels::by_kind;
use crate::registry::{
    ActivateFn, AddFn, AddNormQuantizeFn, AddScaledFn, AttentionMergeFn, AttentionSplitFn, ClipFn,
    EmbedDenseFn, GatedFn, KvWriteFn, LogitMaximaFn, LogitTermsFn, MatmulDenseFn, MatmulPackedFn,
    MatmulPaletteF32Fn, NormHeadsFn, OuterF32Fn, OuterF64Fn, PackRowsFn, QuantizeFn, QuantizeRestFn, RopeFn,
    ScaleFn, SoftcapFn, pick,
};

/// One function pointer for each float operation, kind and variant.
#[derive(Debug)]
pub(crate) struct FloatOps {
    pub quantize: QuantizeFn,
    pub quantize_rest: QuantizeRestFn,
    pub add_norm_quantize: AddNormQuantizeFn,
    pub norm_heads: NormHeadsFn,
    /// Halves, interleaved.
    pub rope: [RopeFn; 2],
    /// By [`Activation`].
    pub activate: [ActivateFn; 5],
    pub gated: [GatedFn; 5],
    pub add: AddFn,
    pub scale: ScaleFn,
    pub softcap: SoftcapFn,
    pub clip: ClipFn,
    /// By [`Kind`].
    pub matmul_palette_f32: [MatmulPaletteF32Fn; Kind::ALL.len()],
    /// By [`DenseType`], then "1" and "many".
    pub matmul_dense: [[MatmulDenseFn; 2]; 3],
    pub pack_rows: PackRowsFn,
    /// By [`DenseType`].
    pub matmul_packed: [MatmulPackedFn; 3],
    pub embed_dense: [EmbedDenseFn; 3],
    /// By [`super::KvType`].
    pub kv_write: [KvWriteFn; 2],
    pub attention_split: [AttentionSplitFn; 2],
    pub attention_merge: AttentionMergeFn,
    pub logit_maxima: LogitMaximaFn,
    pub logit_terms: LogitTermsFn,
    pub outer_f32: OuterF32Fn,
    pub outer_f64: OuterF64Fn,
    pub add_scaled: AddScaledFn,
}

macro_rules! by_activation {
    ($level:ident, $op:ident) => {{
        let [a, b, c, d, e] = Activation::ALL.map(Activation::name);
        [
            pick!($level, $op, a, "row"),
            pick!($level, $op, b, "row"),
            pick!($level, $op, c, "row"),
            pick!($level, $op, d, "row"),
            pick!($level, $op, e, "row"),
        ]
    }};
}

impl FloatOps {
    /// The kernels that serve a level, or `None` where the registry has a gap.
    pub(crate) fn build(level: Level) -> Option<Self> {
        let dense = |dtype: DenseType| {
            let kind = dtype.name();
            Some([pick!(level, MatmulDense, kind, "1"), pick!(level, MatmulDense, kind, "many")])
        };
        let packed = |dtype: DenseType| Some(pick!(level, MatmulPacked, dtype.name(), "many"));
        let embed = |dtype: DenseType| Some(pick!(level, EmbedDense, dtype.name(), "row"));
        let [f16, bf16, f32] = DenseType::ALL;
        Some(Self {
            quantize: pick!(level, Quantize, "f32", "row"),
            quantize_rest: pick!(level, QuantizeRest, "f32", "row"),
            add_norm_quantize: pick!(level, AddNormQuantize, "f32", "row"),
            norm_heads: pick!(level, NormHeads, "f32", "row"),
            rope: [pick!(level, Rope, "f32", "halves"), pick!(level, Rope, "f32", "interleaved")],
            activate: by_activation!(level, Activate),
            gated: by_activation!(level, Gated),
            add: pick!(level, Add, "f32", "row"),
            scale: pick!(level, Scale, "f32", "row"),
            softcap: pick!(level, Softcap, "f32", "row"),
            clip: pick!(level, Clip, "f32", "row"),
            matmul_palette_f32: by_kind(|kind| Some(pick!(level, MatmulPaletteF32, kind.name(), "many")))?,
            matmul_dense: [dense(f16)?, dense(bf16)?, dense(f32)?],
            pack_rows: pick!(level, PackRows, "f32", "rows"),
            matmul_packed: [packed(f16)?, packed(bf16)?, packed(f32)?],
            embed_dense: [embed(f16)?, embed(bf16)?, embed(f32)?],
            kv_write: [pick!(level, KvWrite, "f16", "row"), pick!(level, KvWrite, "i8", "row")],
            attention_split: [
                pick!(level, AttentionSplit, "f16", "rows"),
                pick!(level, AttentionSplit, "i8", "rows"),
            ],
            attention_merge: pick!(level, AttentionMerge, "f32", "rows"),
            logit_maxima: pick!(level, LogitMaxima, "f32", "row"),
            logit_terms: pick!(level, LogitTerms, "f32", "row"),
            outer_f32: pick!(level, OuterF32, "f32", "rows"),
            outer_f64: pick!(level, OuterF64, "f64", "rows"),
            add_scaled: pick!(level, AddScaled, "f64", "row"),
        })
    }
}
