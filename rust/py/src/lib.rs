//! The Python binding of pocketlm: the module `pocketlm._core`, and nothing else.

mod arguments;
mod byte_level;
mod byte_pairs;
mod continuation;
mod engine;
mod errors;
mod json;
mod machine;
mod moment;
mod palettize;
mod sampler;
mod sequence;
mod step;
mod store;

use pyo3::prelude::*;

/// The compiled part of pocketlm.
#[pymodule]
mod _core {
    use super::*;

    #[pymodule_export]
    use crate::byte_level::byte_level_text;
    #[pymodule_export]
    use crate::byte_pairs::{PyBytePairs, PyBytePairsReading};
    #[pymodule_export]
    use crate::continuation::PyContinuation;
    #[pymodule_export]
    use crate::engine::PyEngine;
    #[pymodule_export]
    use crate::machine::{
        cpu_count, current_isa, int8_peak, isa_levels, isa_notes, kernel_registry, machine_memory,
        prompt_kernels, read_bandwidth, release_freed_memory,
    };
    #[pymodule_export]
    use crate::moment::{PyHessian, PySecondMoment};
    #[pymodule_export]
    use crate::palettize::{PyPalettized, compensate_tensor, measure_tensor, palettize_tensor};
    #[pymodule_export]
    use crate::sampler::PySampler;
    #[pymodule_export]
    use crate::sequence::PySequence;
    #[pymodule_export]
    use crate::step::PyStepResult;
    #[pymodule_export]
    use crate::store::{PyTensorInfo, PyWeightStore, palette_kinds};

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
