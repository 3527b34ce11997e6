//! Palettized weights × int8 activations.

mod scalar;

use crate::registry::Row;

/// Rows of the registry.
pub(crate) const ROWS: &[Row] = scalar::ROWS;
