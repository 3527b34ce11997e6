//! Memory whose size a file or a caller decides: refused where there is none, where an allocation would end the process.

use crate::engine::machine_memory;
use crate::error::EngineError;

/// An empty vector with room for `count` elements of `what`.
///
/// # Errors
/// [`EngineError::Memory`] where that is more than this process may use, or than the system gives.
pub fn reserved<T>(count: usize, what: &str) -> Result<Vec<T>, EngineError> {
    let needed = (count as u64).saturating_mul(size_of::<T>() as u64);
    let refused = |available| EngineError::Memory { what: what.into(), needed, available };
    // Some systems promise more than they have, and end who uses it.
    let available = machine_memory().unwrap_or(u64::MAX);
    if needed > available {
        return Err(refused(available));
    }
    let mut room = Vec::new();
    room.try_reserve_exact(count).map_err(|_| refused(0))?;
    Ok(room)
}

/// `count` elements of `what`, all alike.
///
/// # Errors
/// As for [`reserved`].
pub fn filled<T: Clone>(count: usize, element: T, what: &str) -> Result<Vec<T>, EngineError> {
    let mut room = reserved(count, what)?;
    room.resize(count, element);
    Ok(room)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_machine_has_is_refused_by_name() {
        for count in [1 << 50, usize::MAX] {
            let Err(EngineError::Memory { what, needed, .. }) = filled(count, 0u16, "a test") else {
                panic!("{count} elements are there")
            };
            assert!(what == "a test" && needed >= count as u64);
        }
        assert_eq!(filled(3, 7u8, "a test").unwrap(), [7; 3]);
        assert!(reserved::<u64>(5, "a test").unwrap().capacity() >= 5);
    }
}
