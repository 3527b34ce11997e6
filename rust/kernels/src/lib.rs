//! Operations of pocketlm on slices: no Python, no files, no threads.
//!
//! [`Kernels::best`] gives the kernels of this machine; every operation is a method that checks its arguments.

mod arch;
pub mod cluster;
pub mod cpu;
mod error;
pub mod formats;
mod kernels;
mod matmul;
mod ops;
pub mod peak;
mod quantized;
pub mod reference;
pub mod registry;
pub mod sample;
mod scratch;
pub mod simd;

pub use cpu::{Level, level};
pub use error::KernelError;
pub use formats::{Dense, DenseType, Kind, Palette, TILE};
pub use kernels::Kernels;
pub use ops::{
    Activation, Attention, KV_TOKENS, KvBlock, KvBlockMut, KvType, LogitStats, MAX_HEAD_DIM, MAXIMA_BLOCK,
    Norm, NormKind, Outer, PackedRows, SPLIT_TOKENS, TERMS_BLOCK,
};
pub use quantized::{
    ACT_BLOCK, GROUP, QuantBuffer, QuantRowMut, QuantRows, QuantRowsMut, blocks, padded_cols, row_stride,
};
pub use scratch::Scratch;
