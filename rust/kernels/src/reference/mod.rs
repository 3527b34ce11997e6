//! Every float operation in float64, written for reading: what tests hold the kernels to.
//!
//! Nothing here is fast, and nothing checks its arguments: wrong lengths panic.

mod attention;
mod rows;
mod sampling;

pub use attention::{attention, half_to_f64};
pub use rows::{activation, dot, embed, int8, largest_group, norm, quantize, rope, softcap};
pub use sampling::{SamplingSettings, probabilities};
