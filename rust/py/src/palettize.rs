//! Palettizing of one weight, for `pocketlm.palettize`.

use std::sync::Arc;

use numpy::{PyArray1, PyArrayMethods, PyReadonlyArray1};
use pocketlm_engine::EngineError;
use pocketlm_engine::palettize::{Palettized, Source, compensate, measure, palettize};
use pocketlm_engine::store::Tensor;
use pocketlm_kernels::Kind;
use pyo3::prelude::*;

use crate::arguments::{Integer, MOST_ELEMENTS, copied, elements, threads as asked};
use crate::errors::to_python;
use crate::moment::PyHessian;
use crate::store::{PyWeightStore, palette_kind};

/// The parts of a palettized weight and its weighted squared error.
#[pyclass(frozen, get_all, name = "Palettized", module = "pocketlm._core")]
pub(crate) struct PyPalettized {
    kind: String,
    /// uint8 [tiles, bytes of a tile].
    codes: Py<PyAny>,
    /// int8 [tiles, entries].
    codebook: Py<PyAny>,
    /// float16 [rows].
    scale: Py<PyAny>,
    error: f64,
    energy: f64,
}

#[pymethods]
impl PyPalettized {
    /// Parts of consecutive rows as one.
    #[staticmethod]
    fn join(py: Python<'_>, parts: &Bound<'_, PyAny>) -> PyResult<Self> {
        let parts = elements("parts", parts, MOST_ELEMENTS, |part| Ok(part.cast_into::<Self>()?))?;
        let parts: Vec<&Self> = parts.iter().map(Bound::get).collect();
        let Some(first) = parts.first() else {
            return Err(to_python(EngineError::parameter("parts", "are none")));
        };
        if parts.iter().any(|part| part.kind != first.kind) {
            return Err(to_python(EngineError::parameter("parts", "are of different kinds")));
        }
        let numpy = py.import("numpy")?;
        let joined = |arrays: Vec<&Py<PyAny>>| -> PyResult<Py<PyAny>> {
            Ok(numpy.call_method1("concatenate", (arrays,))?.unbind())
        };
        Ok(Self {
            kind: first.kind.clone(),
            codes: joined(parts.iter().map(|part| &part.codes).collect())?,
            codebook: joined(parts.iter().map(|part| &part.codebook).collect())?,
            scale: joined(parts.iter().map(|part| &part.scale).collect())?,
            error: parts.iter().map(|part| part.error).sum(),
            energy: parts.iter().map(|part| part.energy).sum(),
        })
    }
}

/// Palettizes tensor `name` of `store`: see `_core.pyi`.
#[pyfunction]
#[pyo3(signature = (store, name, kind, *, importance=None, transposed=false, threads=None, progress=None))]
pub(crate) fn palettize_tensor(
    py: Python<'_>,
    store: &PyWeightStore,
    name: &str,
    kind: &str,
    importance: Option<PyReadonlyArray1<'_, f32>>,
    transposed: bool,
    threads: Option<Integer>,
    progress: Option<Py<PyAny>>,
) -> PyResult<PyPalettized> {
    let kind = palette_kind(kind)?;
    let result =
        work(py, store, name, importance, transposed, threads, progress, |source, threads, go_on| {
            palettize(source, kind, threads, go_on)
        })?;
    parts(py, kind, result)
}

/// Palettizes rows of tensor `name` of `store` for inputs of a second moment: see `_core.pyi`.
#[pyfunction]
#[pyo3(signature = (store, name, kind, hessian, *, rows, row_weights, transposed=false, threads=None, progress=None))]
pub(crate) fn compensate_tensor(
    py: Python<'_>,
    store: &PyWeightStore,
    name: &str,
    kind: &str,
    hessian: &PyHessian,
    rows: (Integer, Integer),
    row_weights: PyReadonlyArray1<'_, f32>,
    transposed: bool,
    threads: Option<Integer>,
    progress: Option<Py<PyAny>>,
) -> PyResult<PyPalettized> {
    let kind = palette_kind(kind)?;
    let hessian = Arc::clone(&hessian.inner);
    let row_weights = copied("row_weights", &row_weights)?;
    let rows = rows.0.to("rows")?..rows.1.to("rows")?;
    let result = work(py, store, name, None, transposed, threads, progress, |source, threads, go_on| {
        compensate(source, kind, rows, &hessian, &row_weights, threads, go_on)
    })?;
    parts(py, kind, result)
}

fn parts(py: Python<'_>, kind: Kind, result: Palettized) -> PyResult<PyPalettized> {
    let Palettized { codes, codebook, scale, fit } = result;
    let tiles = scale.len().div_ceil(pocketlm_kernels::TILE);
    let scale: Vec<u16> = scale.iter().map(|s| s.to_bits()).collect();
    Ok(PyPalettized {
        kind: kind.name().to_owned(),
        codes: {
            let width = codes.len() / tiles;
            PyArray1::from_vec(py, codes).reshape([tiles, width])?.into_any().unbind()
        },
        codebook: PyArray1::from_vec(py, codebook).reshape([tiles, kind.codebook_len()])?.into_any().unbind(),
        scale: PyArray1::from_vec(py, scale).call_method1("view", ("float16",))?.unbind(),
        error: fit.error,
        energy: fit.energy,
    })
}

/// Weighted squared error and weighted energy of tensor `name` in `kind`, on at most `tiles` tiles spread over it.
#[pyfunction]
#[pyo3(
    signature = (
        store, name, kind, *, tiles=Integer::from(64), importance=None, transposed=false, threads=None, progress=None
    ),
    text_signature = "(store, name, kind, *, tiles=64, importance=None, transposed=False, threads=None, progress=None)"
)]
pub(crate) fn measure_tensor(
    py: Python<'_>,
    store: &PyWeightStore,
    name: &str,
    kind: &str,
    tiles: Integer,
    importance: Option<PyReadonlyArray1<'_, f32>>,
    transposed: bool,
    threads: Option<Integer>,
    progress: Option<Py<PyAny>>,
) -> PyResult<(f64, f64)> {
    let (kind, tiles) = (palette_kind(kind)?, tiles.to("tiles")?);
    let fit = work(py, store, name, importance, transposed, threads, progress, |source, threads, go_on| {
        measure(source, kind, tiles, threads, go_on)
    })?;
    Ok((fit.error, fit.energy))
}

/// Runs `job` without the interpreter lock; takes it back now and then for signals and for `progress(rows done)`.
fn work<T: Send>(
    py: Python<'_>,
    store: &PyWeightStore,
    name: &str,
    importance: Option<PyReadonlyArray1<'_, f32>>,
    transposed: bool,
    threads: Option<Integer>,
    progress: Option<Py<PyAny>>,
    job: impl Send + FnOnce(&Source<'_>, usize, &mut dyn FnMut(usize) -> bool) -> Result<Option<T>, EngineError>,
) -> PyResult<T> {
    let threads = asked(threads)?;
    let tensor = store.shared().get(name).cloned().map_err(to_python)?;
    matrix(&tensor)?;
    let importance = importance.map(|array| copied("importance", &array)).transpose()?;
    let mut raised = None;
    let outcome = py.detach(|| {
        let dense = tensor.dense()?;
        let source = Source {
            name: tensor.name(),
            file: tensor.file(),
            dense,
            transposed,
            importance: importance.as_deref(),
        };
        job(&source, threads, &mut |rows| match Python::attach(|py| tell(py, progress.as_ref(), rows)) {
            Ok(()) => true,
            Err(error) => {
                raised = Some(error);
                false
            }
        })
    });
    match (raised, outcome.map_err(to_python)?) {
        (Some(error), _) => Err(error),
        (None, Some(value)) => Ok(value),
        (None, None) => Err(to_python(EngineError::Internal("palettizing stopped without a reason".into()))),
    }
}

fn tell(py: Python<'_>, progress: Option<&Py<PyAny>>, rows: usize) -> PyResult<()> {
    py.check_signals()?;
    progress.map_or(Ok(()), |progress| progress.call1(py, (rows,)).map(drop))
}

fn matrix(tensor: &Tensor) -> PyResult<()> {
    match tensor.shape() {
        [_, _] => Ok(()),
        shape => Err(to_python(tensor.error(format!("has shape {shape:?}, only matrices are palettized")))),
    }
}
