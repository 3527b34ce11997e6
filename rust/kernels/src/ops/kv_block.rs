//! A block of the cache as kernels see it: half floats, or bytes with a scale for each token.
//!
//! A token's scale is its own, so that a token written later changes nothing of those before it: what is cached equals what is
//! recomputed, however a prompt was cut.

use super::KV_TOKENS;
use super::kv_numbers::QUAD;
use crate::error::{KernelError, expect_len};
use crate::simd::LANES;

/// How the cache stores numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum KvType {
    /// Half floats.
    #[default]
    F16,
    /// Signed bytes, with one float32 scale for each token's key and one for its value.
    I8,
}

impl KvType {
    /// Every type.
    pub const ALL: [Self; 2] = [Self::F16, Self::I8];

    /// The name in options and reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::I8 => "int8",
        }
    }

    /// Where among the keys of a block channel `channel` of the token in slot `slot` lies.
    pub const fn key_at(self, head_dim: usize, slot: usize, channel: usize) -> usize {
        let (group, lane) = (slot / LANES * LANES * head_dim, slot % LANES);
        match self {
            Self::I8 if channel < head_dim / QUAD * QUAD => {
                group + channel / QUAD * QUAD * LANES + lane * QUAD + channel % QUAD
            }
            Self::F16 | Self::I8 => group + channel * LANES + lane,
        }
    }
}

/// One block of the cache of one layer and key-value head: 64 tokens, in four groups of 16. Values are `[64 tokens][head_dim]`.
#[derive(Debug, Clone, Copy)]
pub enum KvBlock<'a> {
    /// Half floats.
    F16 {
        /// Keys, `[4 groups][head_dim][16 tokens]`.
        k: &'a [u16],
        /// Values.
        v: &'a [u16],
    },
    /// Bytes; a number is its byte times its token's scale.
    I8 {
        /// Keys, of each group `[head_dim / 4][16 tokens][4]`, and then the channels that are left, `[head_dim % 4][16 tokens]`.
        k: &'a [i8],
        /// Values.
        v: &'a [i8],
        /// Scales of the 64 keys.
        k_scales: &'a [f32],
        /// Scales of the 64 values.
        v_scales: &'a [f32],
    },
}

/// A [`KvBlock`] to be written.
#[derive(Debug)]
pub enum KvBlockMut<'a> {
    /// Half floats.
    F16 {
        /// Keys.
        k: &'a mut [u16],
        /// Values.
        v: &'a mut [u16],
    },
    /// Bytes and scales.
    I8 {
        /// Keys.
        k: &'a mut [i8],
        /// Values.
        v: &'a mut [i8],
        /// Scales of the 64 keys.
        k_scales: &'a mut [f32],
        /// Scales of the 64 values.
        v_scales: &'a mut [f32],
    },
}

impl KvBlock<'_> {
    /// A block of no tokens, to fill lists with.
    pub const EMPTY: Self = Self::F16 { k: &[], v: &[] };

    /// How numbers are stored.
    pub const fn dtype(&self) -> KvType {
        match self {
            Self::F16 { .. } => KvType::F16,
            Self::I8 { .. } => KvType::I8,
        }
    }

    pub(super) fn check(&self, head_dim: usize) -> Result<(), KernelError> {
        let (k, v, scales) = match *self {
            Self::F16 { k, v } => (k.len(), v.len(), None),
            Self::I8 { k, v, k_scales, v_scales } => {
                (k.len(), v.len(), Some((k_scales.len(), v_scales.len())))
            }
        };
        check_lens(k, v, scales, head_dim)
    }
}

impl KvBlockMut<'_> {
    /// How numbers are stored.
    pub const fn dtype(&self) -> KvType {
        match self {
            Self::F16 { .. } => KvType::F16,
            Self::I8 { .. } => KvType::I8,
        }
    }

    pub(super) fn check(&self, head_dim: usize) -> Result<(), KernelError> {
        let (k, v, scales) = match self {
            Self::F16 { k, v } => (k.len(), v.len(), None),
            Self::I8 { k, v, k_scales, v_scales } => {
                (k.len(), v.len(), Some((k_scales.len(), v_scales.len())))
            }
        };
        check_lens(k, v, scales, head_dim)
    }
}

fn check_lens(
    k: usize,
    v: usize,
    scales: Option<(usize, usize)>,
    head_dim: usize,
) -> Result<(), KernelError> {
    expect_len("keys of a block", k, KV_TOKENS * head_dim)?;
    expect_len("values of a block", v, KV_TOKENS * head_dim)?;
    if let Some((keys, values)) = scales {
        expect_len("scales of keys", keys, KV_TOKENS)?;
        expect_len("scales of values", values, KV_TOKENS)?;
    }
    Ok(())
}
