//! A block of the cache as kernels see it: half floats, or bytes with a scale for each token.
//!
//! A token's scale is its own, so that a token written later changes nothing of those before it: what is cached equals what is
//! recomputed, however a prompt was cut.

use super::KV_TOKENS;
use crate::error::{KernelError, expect_len};
use crate::simd::{LANES, Simd};

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
}

/// One block of the cache of one layer and key-value head: 64 tokens. Keys are `[4 groups of 16 tokens][head_dim][16 tokens]`,
/// values `[64 tokens][head_dim]`.
#[derive(Debug, Clone, Copy)]
pub enum KvBlock<'a> {
    /// Half floats.
    F16 {
        /// Keys.
        k: &'a [u16],
        /// Values.
        v: &'a [u16],
    },
    /// Bytes; a number is its byte times its token's scale.
    I8 {
        /// Keys.
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

/// What attention reads of a block of one type.
pub(super) trait Numbers<'a>: Copy {
    /// Bytes of a number.
    const SIZE: usize;

    /// The numbers of a block, if they are of this type.
    fn of(block: &KvBlock<'a>) -> Option<Self>;
    /// Numbers of the keys, and of the values.
    fn lens(self) -> (usize, usize);
    /// Where keys and values begin, to be asked for ahead of their use.
    fn addresses(self) -> (*const u8, *const u8);
    /// Sixteen numbers of the keys from `at` on, without scale.
    ///
    /// # Safety
    /// `at + 16` is at most the first of [`Numbers::lens`].
    unsafe fn keys<S: Simd>(self, s: S, at: usize) -> S::F;
    /// Sixteen numbers of the values from `at` on, without scale.
    ///
    /// # Safety
    /// `at + 16` is at most the second of [`Numbers::lens`].
    unsafe fn values<S: Simd>(self, s: S, at: usize) -> S::F;
    /// `count` numbers of the values, fewer than sixteen; the other lanes are 0.
    fn few_values<S: Simd>(self, s: S, at: usize, count: usize) -> S::F;
    /// Scores of group `group` times the scales of its keys.
    fn scale_scores<S: Simd>(self, s: S, group: usize, scores: S::F) -> S::F;
    /// Weights of group `group` times the scales of its values.
    fn scale_weights<S: Simd>(self, s: S, group: usize, weights: S::F) -> S::F;
}

/// Half floats.
#[derive(Clone, Copy)]
pub(super) struct Halves<'a> {
    k: &'a [u16],
    v: &'a [u16],
}

impl<'a> Numbers<'a> for Halves<'a> {
    const SIZE: usize = 2;

    #[inline(always)]
    fn of(block: &KvBlock<'a>) -> Option<Self> {
        match *block {
            KvBlock::F16 { k, v } => Some(Self { k, v }),
            KvBlock::I8 { .. } => None,
        }
    }
    #[inline(always)]
    fn lens(self) -> (usize, usize) {
        (self.k.len(), self.v.len())
    }
    #[inline(always)]
    fn addresses(self) -> (*const u8, *const u8) {
        (self.k.as_ptr().cast(), self.v.as_ptr().cast())
    }
    #[inline(always)]
    unsafe fn keys<S: Simd>(self, s: S, at: usize) -> S::F {
        // SAFETY: the caller promises 16 numbers of the keys from `at` on, of two bytes each.
        unsafe { s.f16_at(self.k.as_ptr().add(at).cast()) }
    }
    #[inline(always)]
    unsafe fn values<S: Simd>(self, s: S, at: usize) -> S::F {
        // SAFETY: the caller promises 16 numbers of the values from `at` on, of two bytes each.
        unsafe { s.f16_at(self.v.as_ptr().add(at).cast()) }
    }
    #[inline(always)]
    fn few_values<S: Simd>(self, s: S, at: usize, count: usize) -> S::F {
        let mut lanes = [0; LANES];
        lanes[..count].copy_from_slice(&self.v[at..at + count]);
        s.load_f16(&lanes)
    }
    #[inline(always)]
    fn scale_scores<S: Simd>(self, _: S, _: usize, scores: S::F) -> S::F {
        scores
    }
    #[inline(always)]
    fn scale_weights<S: Simd>(self, _: S, _: usize, weights: S::F) -> S::F {
        weights
    }
}

/// Bytes and scales.
#[derive(Clone, Copy)]
pub(super) struct Scaled<'a> {
    k: &'a [i8],
    v: &'a [i8],
    k_scales: &'a [f32],
    v_scales: &'a [f32],
}

impl<'a> Numbers<'a> for Scaled<'a> {
    const SIZE: usize = 1;

    #[inline(always)]
    fn of(block: &KvBlock<'a>) -> Option<Self> {
        match *block {
            KvBlock::I8 { k, v, k_scales, v_scales } => Some(Self { k, v, k_scales, v_scales }),
            KvBlock::F16 { .. } => None,
        }
    }
    #[inline(always)]
    fn lens(self) -> (usize, usize) {
        (self.k.len(), self.v.len())
    }
    #[inline(always)]
    fn addresses(self) -> (*const u8, *const u8) {
        (self.k.as_ptr().cast(), self.v.as_ptr().cast())
    }
    #[inline(always)]
    unsafe fn keys<S: Simd>(self, s: S, at: usize) -> S::F {
        // SAFETY: the caller promises 16 numbers of the keys from `at` on, of one byte each.
        unsafe { s.i8_at(self.k.as_ptr().add(at).cast()) }
    }
    #[inline(always)]
    unsafe fn values<S: Simd>(self, s: S, at: usize) -> S::F {
        // SAFETY: the caller promises 16 numbers of the values from `at` on, of one byte each.
        unsafe { s.i8_at(self.v.as_ptr().add(at).cast()) }
    }
    #[inline(always)]
    fn few_values<S: Simd>(self, s: S, at: usize, count: usize) -> S::F {
        let mut lanes = [0i8; LANES];
        lanes[..count].copy_from_slice(&self.v[at..at + count]);
        // SAFETY: the array has 16 bytes.
        unsafe { s.i8_at(lanes.as_ptr().cast()) }
    }
    #[inline(always)]
    fn scale_scores<S: Simd>(self, s: S, group: usize, scores: S::F) -> S::F {
        s.mul(scores, s.load(&self.k_scales.as_chunks::<LANES>().0[group]))
    }
    #[inline(always)]
    fn scale_weights<S: Simd>(self, s: S, group: usize, weights: S::F) -> S::F {
        s.mul(weights, s.load(&self.v_scales.as_chunks::<LANES>().0[group]))
    }
}
