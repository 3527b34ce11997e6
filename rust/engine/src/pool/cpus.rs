//! How many threads to use.

use std::collections::BTreeSet;
use std::fs;
use std::thread::available_parallelism;

use super::MAX_THREADS;
use crate::error::EngineError;

/// Physical cores that this process may use: what affinity and the cgroup's quota leave, counted once per core, since
/// a second hardware thread of a core adds no memory bandwidth and takes the first one's vector units.
pub fn cpu_count() -> usize {
    let available = available_parallelism().map_or(1, usize::from);
    physical_cores().map_or(available, |cores| cores.min(available)).clamp(1, MAX_THREADS)
}

/// The threads of an engine: `asked`, else `POCKETLM_THREADS`, else [`cpu_count`].
///
/// # Errors
/// [`EngineError::Parameter`] if the number is not in `1..=MAX_THREADS`.
pub fn thread_count(asked: Option<usize>) -> Result<usize, EngineError> {
    let checked = |name: &str, count: Option<usize>| match count {
        Some(count) if (1..=MAX_THREADS).contains(&count) => Ok(count),
        _ => Err(EngineError::parameter(name, format!("must be a number from 1 to {MAX_THREADS}"))),
    };
    match (asked, std::env::var_os("POCKETLM_THREADS")) {
        (Some(count), _) => checked("threads", Some(count)),
        (None, Some(text)) => {
            checked("POCKETLM_THREADS", text.to_str().and_then(|text| text.trim().parse().ok()))
        }
        (None, None) => Ok(cpu_count()),
    }
}

/// Whether the number of threads was asked for, rather than found.
pub fn is_fixed(asked: Option<usize>) -> bool {
    asked.is_some() || std::env::var_os("POCKETLM_THREADS").is_some()
}

/// Distinct cores among the processors that this process may run on, where Linux tells.
fn physical_cores() -> Option<usize> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
    let cores: Option<BTreeSet<String>> = parse_list(allowed.trim())?
        .into_iter()
        .map(|cpu| {
            let path = format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
            fs::read_to_string(path).ok().map(|siblings| siblings.trim().to_owned())
        })
        .collect();
    cores.map(|cores| cores.len()).filter(|&count| count > 0)
}

/// The kernel's list format: `0-3,8,10-11`.
fn parse_list(text: &str) -> Option<Vec<usize>> {
    let mut found = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (first.parse::<usize>().ok()?, last.parse::<usize>().ok()?);
        // The kernel knows no more than some thousands; a list beyond that is not one.
        found.extend((last < 1 << 16).then_some(first..=last)?);
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_processors_are_read() {
        assert_eq!(parse_list("0-2,8,10-11"), Some(vec![0, 1, 2, 8, 10, 11]));
        assert_eq!(parse_list("5"), Some(vec![5]));
        assert_eq!(parse_list(""), None);
        assert_eq!(parse_list("0-99999999"), None);
    }

    #[test]
    fn counts_are_checked() {
        assert!((1..=MAX_THREADS).contains(&cpu_count()));
        assert_eq!(thread_count(Some(3)), Ok(3));
        assert!(thread_count(Some(0)).is_err());
        assert!(thread_count(Some(MAX_THREADS + 1)).is_err());
    }
}
