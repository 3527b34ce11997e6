//! What this machine and this build offer: instruction sets, kernels, processors, bandwidth.

use std::time::Duration;

use pocketlm_engine::EngineError;
use pocketlm_engine::pool;
use pocketlm_kernels::registry::{find, rows};
use pocketlm_kernels::{KernelError, Kernels, Kind, Level, cpu, level};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::arguments::{Integer, threads as asked};
use crate::errors::{parameter, to_python};

/// Every level that this build knows, and whether this machine can run it.
#[pyfunction]
pub(crate) fn isa_levels() -> Vec<(&'static str, bool)> {
    Level::ALL.into_iter().map(|level| (level.name(), level.is_available())).collect()
}

/// The level in use.
#[pyfunction]
pub(crate) fn current_isa() -> PyResult<&'static str> {
    Ok(level().map_err(unsupported)?.name())
}

/// Bytes of memory that this process may use: the machine's, or its cgroup's limit.
#[pyfunction]
pub(crate) fn machine_memory() -> Option<u64> {
    pocketlm_engine::machine_memory()
}

/// How the kernels for prompts hold the decoded weights of each kind, for nine to sixteen rows and for more: measured when first asked,
/// some milliseconds in all.
#[pyfunction]
pub(crate) fn prompt_kernels(py: Python<'_>) -> PyResult<Vec<(&'static str, &'static str, &'static str)>> {
    let kernels = Kernels::best().map_err(unsupported)?;
    let choices =
        |kind: Kind| (kind.name(), kernels.prompt_kernel(kind, 16), kernels.prompt_kernel(kind, usize::MAX));
    Ok(py.detach(|| Kind::ALL.map(choices)).to_vec())
}

/// What a user should know of instruction sets that are here and not used.
#[pyfunction]
pub(crate) fn isa_notes() -> Vec<&'static str> {
    cpu::notes()
}

/// Every kernel of this build: see `_core.pyi`.
#[pyfunction]
pub(crate) fn kernel_registry(py: Python<'_>) -> PyResult<Vec<Bound<'_, PyDict>>> {
    let current = level().map_err(unsupported)?;
    rows()
        .map(|row| {
            let chosen =
                find(row.op(), row.kind, row.variant, current).is_some_and(|best| best.level == row.level);
            let entry = PyDict::new(py);
            entry.set_item("op", row.op().name())?;
            entry.set_item("kind", row.kind)?;
            entry.set_item("variant", row.variant)?;
            entry.set_item("level", row.level.name())?;
            entry.set_item("available", row.level.is_available())?;
            entry.set_item("chosen", chosen)?;
            Ok(entry)
        })
        .collect()
}

/// How long to measure.
pub(crate) fn measuring_time(seconds: f64) -> PyResult<Duration> {
    if !(0.0..=60.0).contains(&seconds) {
        return Err(parameter("seconds", "must be from 0 to 60"));
    }
    Ok(Duration::from_secs_f64(seconds))
}

/// Gives memory that was freed back to the system, where the allocator keeps it otherwise: glibc's keeps what a tokenizer was read
/// with, while an engine maps its own.
#[pyfunction]
pub(crate) fn release_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: takes a number of bytes to keep; the allocator locks its arenas by itself, and only pages that
    // it has handed to nobody are given back.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Bytes per second that `threads` threads read from memory together.
#[pyfunction]
#[pyo3(signature = (threads, seconds=0.5))]
pub(crate) fn read_bandwidth(py: Python<'_>, threads: Integer, seconds: f64) -> PyResult<f64> {
    let time = measuring_time(seconds)?;
    let threads = asked(Some(threads))?;
    py.detach(|| pool::read_bandwidth(threads, time)).map_err(to_python)
}

/// Int8 multiply-adds per second that `threads` threads do together from registers.
#[pyfunction]
#[pyo3(signature = (threads, seconds=0.1))]
pub(crate) fn int8_peak(py: Python<'_>, threads: Integer, seconds: f64) -> PyResult<f64> {
    let time = measuring_time(seconds)?;
    let threads = asked(Some(threads))?;
    py.detach(|| pool::int8_peak(threads, time)).map_err(to_python)
}

/// The number of threads that an engine would choose.
#[pyfunction]
pub(crate) fn cpu_count() -> PyResult<usize> {
    pool::thread_count(None).map_err(to_python)
}

fn unsupported(error: KernelError) -> PyErr {
    to_python(EngineError::Unsupported(error.to_string()))
}
