//! What a kernel call can refuse.

/// An argument that does not fit, or an instruction set that cannot be used.
///
/// Kernels check every length before any work starts, so an error means that nothing was written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    /// A slice has the wrong number of elements.
    #[error("{what}: expected {expected} elements, got {got}")]
    Length {
        /// The argument.
        what: &'static str,
        /// Elements needed.
        expected: usize,
        /// Elements given.
        got: usize,
    },
    /// A number (index, end of a range, stride) is beyond its limit.
    #[error("{what}: {got} is out of range, the limit is {limit}")]
    Range {
        /// The argument.
        what: &'static str,
        /// The value given.
        got: usize,
        /// The limit that it crossed.
        limit: usize,
    },
    /// Two arguments disagree, or a value has no meaning.
    #[error("{what}: {reason}")]
    Invalid {
        /// The argument.
        what: &'static str,
        /// Why it was refused.
        reason: &'static str,
    },
    /// A product of sizes does not fit the address space.
    #[error("{what}: the size overflows")]
    Overflow {
        /// The quantity.
        what: &'static str,
    },
    /// The system gives no more memory.
    #[error("{what}: {bytes} bytes could not be allocated")]
    Memory {
        /// What it was for.
        what: &'static str,
        /// Bytes asked for.
        bytes: usize,
    },
    /// `POCKETLM_ISA` holds a name that no level has.
    #[error("POCKETLM_ISA={name:?} is not known; levels are: {known}")]
    UnknownLevel {
        /// The name given.
        name: String,
        /// Every name, separated by commas.
        known: String,
    },
    /// `POCKETLM_ISA` names a level that this machine does not have.
    #[error("POCKETLM_ISA={name:?} cannot run on this machine; available: {available}")]
    LevelUnavailable {
        /// The name given.
        name: String,
        /// Names that would work, separated by commas.
        available: String,
    },
}

/// Checks the length of a slice.
pub(crate) fn expect_len(what: &'static str, got: usize, expected: usize) -> Result<(), KernelError> {
    if got == expected { Ok(()) } else { Err(KernelError::Length { what, expected, got }) }
}

/// Multiplies sizes, refusing overflow.
pub(crate) fn product(what: &'static str, factors: &[usize]) -> Result<usize, KernelError> {
    factors.iter().try_fold(1usize, |a, &b| a.checked_mul(b)).ok_or(KernelError::Overflow { what })
}
