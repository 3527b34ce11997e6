//! Memory of an engine, counted before it is allocated.

use std::fs;
use std::path::{Path, PathBuf};

use pocketlm_kernels::{KV_TOKENS, KvType};

use crate::error::EngineError;
use crate::kv::KvCache;
use crate::plan::Plan;
use crate::run::{Limits, Schedule, Worker};

/// Bytes by purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// Weights that the model reads, mapped or owned.
    pub weights: u64,
    /// The KV cache when full; pages that were never used are not committed.
    pub cache: u64,
    /// Activations and workers' memory.
    pub scratch: u64,
}

impl Memory {
    /// The memory of a plan's engine, for sequences of up to `tokens` tokens.
    pub(super) fn of(
        plan: &Plan,
        kv: KvType,
        cache_tokens: usize,
        tokens: usize,
        threads: usize,
    ) -> Result<Self, EngineError> {
        let cache = KvCache::bytes(&plan.caches, kv, cache_tokens).ok_or_else(|| {
            // More than can be addressed or counted.
            let block = KvCache::bytes(&plan.caches, kv, KV_TOKENS).unwrap_or(u64::MAX);
            let needed = block.saturating_mul((cache_tokens / KV_TOKENS) as u64);
            too_much("the KV cache", needed, machine_memory().unwrap_or(isize::MAX as u64))
        })?;
        let scratch = Worker::bytes(plan, tokens)
            .and_then(|worker| worker.checked_mul(threads as u64))
            .and_then(|workers| workers.checked_add(Schedule::bytes(plan.max_rows)?))
            .and_then(|bytes| {
                bytes.checked_add(Limits::new(plan).bytes())?.checked_add(plan.arena_bytes as u64)
            })
            .ok_or_else(|| too_much("scratch", u64::MAX, machine_memory().unwrap_or(isize::MAX as u64)))?;
        Ok(Self { weights: plan.weights.bytes(), cache, scratch })
    }

    /// Everything.
    pub fn total(&self) -> u64 {
        self.weights.saturating_add(self.cache).saturating_add(self.scratch)
    }

    /// This memory beside that of `engine`, which reads the same weights, and `results` bytes.
    pub(super) fn beside(self, engine: Self, results: u64) -> Self {
        let scratch = self.scratch.saturating_add(engine.scratch).saturating_add(results);
        Self { cache: self.cache.saturating_add(engine.cache), scratch, ..self }
    }

    /// Refuses what exceeds the limit, or without one the machine. `what` takes the memory.
    pub(super) fn check(&self, what: &str, limit: Option<u64>) -> Result<(), EngineError> {
        let (limit, what) = match limit {
            Some(limit) => (limit, format!("max_memory: {what}")),
            // Weights are mapped, and need not be resident all at once.
            None => (
                machine_memory().map_or(u64::MAX, |bytes| bytes.saturating_add(self.weights)),
                format!("{what} on this machine"),
            ),
        };
        if self.total() > limit {
            return Err(too_much(&what, self.total(), limit));
        }
        Ok(())
    }
}

fn too_much(what: &str, needed: u64, available: u64) -> EngineError {
    EngineError::Memory { what: what.into(), needed, available }
}

/// Bytes of memory that this process may use: what the machine has, or less where a cgroup (a container, a service) says so;
/// `None` where the system does not tell.
pub fn machine_memory() -> Option<u64> {
    let read = |path: &Path| fs::read_to_string(path).ok();
    let installed = read(Path::new("/proc/meminfo")).and_then(|text| installed(&text));
    let allowed = read(Path::new("/proc/self/cgroup")).and_then(|text| allowed(&text, read));
    installed.into_iter().chain(allowed).min()
}

/// The whole memory by the text of `/proc/meminfo`.
fn installed(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// The smallest limit of the cgroups in the text of `/proc/self/cgroup` and of all above them, whose files `read` reads.
fn allowed(cgroups: &str, read: impl Fn(&Path) -> Option<String>) -> Option<u64> {
    // "max", where there is no limit, is no number.
    cgroups.lines().flat_map(limit_files).filter_map(|file| read(&file)?.trim().parse().ok()).min()
}

/// Files that may limit the memory of a cgroup, given as a line of `/proc/self/cgroup`: `0::PATH` of version 2, or
/// `NUMBER:CONTROLLERS:PATH` of version 1 with `memory` among the controllers. They are looked for where both are mounted by
/// convention; in a container that mount may begin in the middle of the path, so files that are not there say nothing.
fn limit_files(line: &str) -> Vec<PathBuf> {
    let mut fields = line.splitn(3, ':').skip(1);
    let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { return Vec::new() };
    let (mount, name) = if controllers.is_empty() {
        ("/sys/fs/cgroup", "memory.max")
    } else if controllers.split(',').any(|controller| controller == "memory") {
        ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
    } else {
        return Vec::new();
    };
    let path = Path::new(path.trim_start_matches('/'));
    path.ancestors().map(|group| Path::new(mount).join(group).join(name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// [`allowed`] where these files exist.
    fn limit(cgroups: &str, files: &[(&str, &str)]) -> Option<u64> {
        allowed(cgroups, |path| {
            files.iter().find(|(file, _)| Path::new(file) == path).map(|(_, text)| (*text).to_owned())
        })
    }

    #[test]
    fn the_smallest_limit_on_the_way_to_the_root_counts() {
        let files = [
            ("/sys/fs/cgroup/a/b/memory.max", "max\n"),
            ("/sys/fs/cgroup/a/memory.max", "4096\n"),
            ("/sys/fs/cgroup/memory.max", "8192\n"),
            ("/sys/fs/cgroup/memory/c/memory.limit_in_bytes", "2048\n"),
            ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
        ];
        assert_eq!(limit("0::/a/b\n", &files), Some(4096));
        assert_eq!(limit("0::/\n", &files), Some(8192));
        // A path of the host, of which the container sees only the root.
        assert_eq!(limit("0::/docker/123\n", &files), Some(8192));
        // Both versions at once, and controllers that say nothing of memory.
        assert_eq!(limit("9:name=systemd:/x\n5:cpu,memory:/c/d\n0::/a\n", &files), Some(2048));
        assert_eq!(limit("4:cpu,cpuacct:/a\n", &files), None);
        // Colons belong to the path; what is above the mount is not looked at.
        assert_eq!(limit("0::/a/b:c\n", &files), Some(4096));
        assert_eq!(limit("0::/../a\n", &[("/sys/fs/cgroup/a/memory.max", "1")]), None);
        assert_eq!(limit("", &files), None);
        assert_eq!(limit("nonsense\n0:\n", &files), None);
    }

    #[test]
    fn the_machine_tells_its_memory() {
        assert_eq!(installed("MemFree: 1 kB\nMemTotal:       16318480 kB\n"), Some(16_318_480 << 10));
        assert_eq!(installed("MemTotal: many\n"), None);
        assert_eq!(installed(&format!("MemTotal: {} kB\n", u64::MAX)), None);
        if cfg!(target_os = "linux") {
            assert!(machine_memory().is_some_and(|bytes| bytes > 1 << 20));
        }
    }
}
