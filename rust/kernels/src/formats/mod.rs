//! Weight formats: palettized tiles and dense rows.

mod dense;
mod embed;
mod kind;
mod pack;
mod palette;

pub use dense::{Dense, DenseType};
pub(crate) use embed::ROWS as EMBED_ROWS;
pub(crate) use kind::each_kind;
pub use kind::{Kind, TILE};
pub use pack::{dequantize, pack, unpack};
pub use palette::Palette;
