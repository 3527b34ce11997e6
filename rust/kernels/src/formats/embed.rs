//! One row of a palettized table: the lookup of a token's embedding.

use super::kind::{Kind, each_kind};
use super::pack::decode_row;
use super::palette::Palette;
use crate::cpu::Level;
use crate::registry::{KernelFn, Row};

/// Portable code serves every level: [`crate::registry`] says why.
///
/// # Safety
/// Needs nothing: every access is checked. `unsafe` only to have the type that the registry holds.
unsafe fn embed(w: &Palette<'_>, row: usize, out: &mut [f32]) {
    decode_row(w, row, out);
}

const fn row(kind: Kind) -> Row {
    Row { kind: kind.name(), variant: "row", level: Level::Scalar, func: KernelFn::EmbedPalette(embed) }
}

macro_rules! rows {
    ($($kind:ident)*) => { &[$(row(Kind::$kind)),*] };
}

pub(crate) const ROWS: &[Row] = each_kind!(rows);
