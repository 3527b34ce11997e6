//! Float operations: each written once over [`crate::simd::Simd`] and instantiated for every level.
//!
//! The order of every sum is part of an operation's definition, so results are bit-identical on every level, for any number of
//! rows, threads or calls. Where a value is NaN it is NaN on every level; its sign and payload are unspecified.

#[macro_use]
mod instantiate;

pub(crate) mod activation;
mod api;
mod api_outer;
mod api_packed;
mod api_rows;
pub(crate) mod attention;
mod attention_tiles;
pub(crate) mod by_lane;
pub(crate) mod dense;
mod dense_tile;
pub(crate) mod elementwise;
mod kv;
mod kv_block;
mod kv_numbers;
pub(crate) mod logits;
pub(crate) mod math;
mod merge;
pub(crate) mod norm;
pub(crate) mod outer;
mod packed;
pub(crate) mod quantize;
pub(crate) mod rope;
mod table;

pub use activation::Activation;
pub use attention::Attention;
pub use kv_block::{KvBlock, KvBlockMut, KvType};
pub use logits::{LogitStats, MAXIMA_BLOCK, TERMS_BLOCK};
pub use norm::{Norm, NormKind};
pub use outer::Outer;
pub use packed::PackedRows;
pub(crate) use table::FloatOps;

use crate::registry::Row;

/// Tokens of a block of the key-value cache.
pub const KV_TOKENS: usize = 64;
/// Tokens of a split: the span of attention that is computed as one, at absolute positions.
pub const SPLIT_TOKENS: usize = 512;
/// Largest number of channels of a head.
pub const MAX_HEAD_DIM: usize = 1024;

/// Rows of the registry, by module.
pub(crate) const ROWS: &[&[Row]] = &[
    activation::ROWS,
    attention::ROWS,
    by_lane::ROWS,
    dense::ROWS,
    elementwise::ROWS,
    kv::ROWS,
    logits::ROWS,
    merge::ROWS,
    norm::ROWS,
    outer::ROWS,
    packed::ROWS,
    quantize::ROWS,
    rope::ROWS,
];
