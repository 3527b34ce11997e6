//! Instruction-set levels: which exist, which this machine has, which one is used.

use std::sync::OnceLock;

#[cfg(target_arch = "x86_64")]
use crate::arch::amx;
use crate::error::KernelError;

/// The environment variable that overrides the level.
pub const ISA_VARIABLE: &str = "POCKETLM_ISA";

/// A set of instructions that kernels are written for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Level {
    /// Portable Rust.
    Scalar,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// AVX2 and AVX-VNNI: 256-bit int8 dot products.
    Avx2Vnni,
    /// AVX-512 F, BW, VL, DQ and VNNI.
    Avx512,
    /// AVX-512 as above and VBMI: byte permutation over 64 bytes.
    Avx512Vbmi,
    /// AVX-512 as above and AMX: int8 products of whole tiles, for prefill.
    Avx512Amx,
    /// AArch64 baseline.
    Neon,
    /// AArch64 with int8 dot products.
    NeonDotprod,
    /// AArch64 with int8 dot products and int8 matrix products.
    NeonI8mm,
}

impl Level {
    /// Every level of every architecture, lowest first within one architecture.
    pub const ALL: [Level; 9] = [
        Level::Scalar,
        Level::Avx2,
        Level::Avx2Vnni,
        Level::Avx512,
        Level::Avx512Vbmi,
        Level::Avx512Amx,
        Level::Neon,
        Level::NeonDotprod,
        Level::NeonI8mm,
    ];

    /// The name used by `POCKETLM_ISA` and in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Level::Scalar => "scalar",
            Level::Avx2 => "avx2",
            Level::Avx2Vnni => "avx2vnni",
            Level::Avx512 => "avx512",
            Level::Avx512Vbmi => "avx512vbmi",
            Level::Avx512Amx => "avx512amx",
            Level::Neon => "neon",
            Level::NeonDotprod => "neon-dotprod",
            Level::NeonI8mm => "neon-i8mm",
        }
    }

    /// The level of that name.
    pub fn from_name(name: &str) -> Option<Level> {
        Self::ALL.into_iter().find(|level| level.name() == name)
    }

    /// The level whose kernels are used where this one has none of its own: a subset of its instructions.
    /// AVX-512 does not fall back to AVX-VNNI, which many AVX-512 machines lack.
    pub const fn fallback(self) -> Option<Level> {
        match self {
            Level::Scalar => None,
            Level::Avx2 | Level::Neon => Some(Level::Scalar),
            Level::Avx2Vnni | Level::Avx512 => Some(Level::Avx2),
            Level::Avx512Vbmi => Some(Level::Avx512),
            Level::Avx512Amx => Some(Level::Avx512Vbmi),
            Level::NeonDotprod => Some(Level::Neon),
            Level::NeonI8mm => Some(Level::NeonDotprod),
        }
    }

    /// Whether this machine can run the level. Detection asks the processor and the operating system.
    pub fn is_available(self) -> bool {
        if self == Level::Scalar {
            return true;
        }
        #[cfg(target_arch = "x86_64")]
        return x86(self);
        #[cfg(target_arch = "aarch64")]
        return arm(self);
        #[allow(unreachable_code)]
        false
    }

    /// The levels that this machine can run, lowest first.
    pub fn available() -> Vec<Level> {
        Self::ALL.into_iter().filter(|level| level.is_available()).collect()
    }
}

impl std::fmt::Display for Level {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(target_arch = "x86_64")]
fn x86(level: Level) -> bool {
    use std::arch::is_x86_feature_detected as has;
    let avx2 = has!("avx2") && has!("fma") && has!("f16c");
    let avx512 = avx2
        && has!("avx512f")
        && has!("avx512bw")
        && has!("avx512vl")
        && has!("avx512dq")
        && has!("avx512vnni");
    match level {
        Level::Avx2 => avx2,
        Level::Avx2Vnni => avx2 && has!("avxvnni"),
        Level::Avx512 => avx512,
        Level::Avx512Vbmi => avx512 && has!("avx512vbmi"),
        Level::Avx512Amx => avx512 && has!("avx512vbmi") && amx::state() == &amx::State::Usable,
        _ => false,
    }
}

#[cfg(target_arch = "aarch64")]
fn arm(level: Level) -> bool {
    use std::arch::is_aarch64_feature_detected as has;
    match level {
        Level::Neon => has!("neon"),
        Level::NeonDotprod => has!("neon") && has!("dotprod"),
        Level::NeonI8mm => has!("neon") && has!("dotprod") && has!("i8mm"),
        _ => false,
    }
}

/// What a user should know of levels that the processor has and that are not used all the same.
pub fn notes() -> Vec<&'static str> {
    #[cfg(target_arch = "x86_64")]
    return amx::state().note().into_iter().collect();
    #[allow(unreachable_code)]
    Vec::new()
}

/// The level in use: the best of this machine, or the one that `POCKETLM_ISA` names.
///
/// Decided once per process; later changes of the variable have no effect.
///
/// # Errors
/// [`KernelError::UnknownLevel`] and [`KernelError::LevelUnavailable`], both listing what would work.
pub fn level() -> Result<Level, KernelError> {
    static CHOSEN: OnceLock<Result<Level, KernelError>> = OnceLock::new();
    CHOSEN
        .get_or_init(|| {
            let wish = std::env::var_os(ISA_VARIABLE).map(|v| v.to_string_lossy().into_owned());
            choose(wish.as_deref())
        })
        .clone()
}

/// The level for a wish (`None` or empty: the best one available).
pub(crate) fn choose(wish: Option<&str>) -> Result<Level, KernelError> {
    let names = |levels: &[Level]| levels.iter().map(|l| l.name()).collect::<Vec<_>>().join(", ");
    let available = Level::available();
    match wish.map(str::trim) {
        None | Some("") => Ok(available.last().copied().unwrap_or(Level::Scalar)),
        Some(name) => {
            let level = Level::from_name(name)
                .ok_or_else(|| KernelError::UnknownLevel { name: name.into(), known: names(&Level::ALL) })?;
            if level.is_available() {
                Ok(level)
            } else {
                Err(KernelError::LevelUnavailable { name: name.into(), available: names(&available) })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_distinct_and_found_again() {
        for level in Level::ALL {
            assert_eq!(Level::from_name(level.name()), Some(level));
        }
    }

    #[test]
    fn fallback_chains_end_at_scalar_and_stay_available() {
        for start in Level::available() {
            let mut level = start;
            while let Some(next) = level.fallback() {
                assert!(next.is_available(), "{start} falls back to {next}, which is not available");
                level = next;
            }
            assert_eq!(level, Level::Scalar);
        }
    }

    #[test]
    fn wishes_are_honoured_or_refused_by_name() {
        assert_eq!(choose(Some("scalar")), Ok(Level::Scalar));
        assert_eq!(choose(Some("")), choose(None));
        let unknown = choose(Some("sse9")).unwrap_err().to_string();
        assert!(unknown.contains("sse9") && unknown.contains("avx512vbmi"), "{unknown}");
        for level in Level::ALL.into_iter().filter(|l| !l.is_available()) {
            let refused = choose(Some(level.name())).unwrap_err().to_string();
            assert!(refused.contains(level.name()) && refused.contains("scalar"), "{refused}");
        }
    }
}
