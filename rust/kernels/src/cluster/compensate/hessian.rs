//! The second moment of a projection's inputs, with what a sweep over the inputs needs of it.

use crate::error::{KernelError, expect_len, product};
use crate::formats::Kind;

/// Inputs that share a code: one, or for pairs up to two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Unit {
    /// Place of the first in the order.
    pub place: usize,
    /// How many there are.
    pub len: usize,
    /// Number of their code in a row.
    pub code: usize,
}

/// The order in which a sweep takes the inputs: those of one code stand side by side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// The input at each place.
    columns: Vec<usize>,
    units: Vec<Unit>,
    pairs: bool,
}

impl Order {
    /// The order for codes of `kind` over `cols` inputs.
    pub fn new(kind: Kind, cols: usize) -> Self {
        let pairs = kind == Kind::P2v;
        let (mut columns, mut units) = (Vec::with_capacity(cols), Vec::new());
        for code in 0..kind.codes_per_row(cols) {
            // Of eight inputs k and k + 4 are a pair.
            let inputs =
                if pairs { [code / 4 * 8 + code % 4, code / 4 * 8 + code % 4 + 4] } else { [code, cols] };
            let place = columns.len();
            columns.extend(inputs.into_iter().filter(|&col| col < cols));
            if columns.len() > place {
                units.push(Unit { place, len: columns.len() - place, code });
            }
        }
        Self { columns, units, pairs }
    }

    /// The input at each place.
    pub fn columns(&self) -> &[usize] {
        &self.columns
    }

    pub(super) fn units(&self) -> &[Unit] {
        &self.units
    }
}

/// A damped second moment H = (I + U) D (I + U)ᵀ, U strictly upper triangular, D diagonal.
#[derive(Debug, Clone, Copy)]
pub struct Hessian<'a> {
    /// H, symmetric, `[cols, cols]`.
    moment: &'a [f32],
    /// U in the order of the sweep, `[cols, cols]`; what is not above the diagonal is not read.
    pub(super) factor: &'a [f32],
    /// The diagonal of D in the order of the sweep.
    pub(super) pivots: &'a [f64],
    pub(super) order: &'a Order,
}

impl<'a> Hessian<'a> {
    /// Wraps H (`[cols, cols]`, symmetric, positive definite) and its factors, whose places `order` says.
    ///
    /// # Errors
    /// When a length does not fit.
    pub fn new(
        moment: &'a [f32],
        factor: &'a [f32],
        pivots: &'a [f64],
        order: &'a Order,
    ) -> Result<Self, KernelError> {
        let cols = order.columns.len();
        let square = product("second moment", &[cols, cols])?;
        expect_len("second moment", moment.len(), square)?;
        expect_len("factor of a second moment", factor.len(), square)?;
        expect_len("pivots of a second moment", pivots.len(), cols)?;
        Ok(Self { moment, factor, pivots, order })
    }

    pub(super) fn expect(&self, cols: usize, kind: Kind) -> Result<(), KernelError> {
        expect_len("inputs of a second moment", self.pivots.len(), cols)?;
        if self.order.pairs != (kind == Kind::P2v) {
            return Err(KernelError::Invalid {
                what: "second moment",
                reason: "it was factored for codes of another kind",
            });
        }
        Ok(())
    }

    /// The diagonal of H, input by input.
    pub fn diagonal(&self) -> impl Iterator<Item = f32> + use<'a> {
        let cols = self.pivots.len();
        self.moment.iter().step_by(cols + 1).copied()
    }

    /// A row of H.
    #[inline(always)]
    pub(super) fn row(&self, col: usize) -> &'a [f32] {
        let cols = self.pivots.len();
        &self.moment[col * cols..(col + 1) * cols]
    }
}
