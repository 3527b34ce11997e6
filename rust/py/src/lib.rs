//! The Python binding of pocketlm: the module `pocketlm._core`, and nothing else.

mod errors;
mod palettize;
mod store;

use pyo3::prelude::*;

/// The compiled part of pocketlm.
#[pymodule]
mod _core {
    use super::*;

    #[pymodule_export]
    use crate::palettize::{PyPalettized, measure_tensor, palettize_tensor};
    #[pymodule_export]
    use crate::store::{PyTensorInfo, PyWeightStore};

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
