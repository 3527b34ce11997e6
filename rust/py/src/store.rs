//! `WeightStore`: the weights of a model, by name.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use numpy::{PyArray1, PyArrayDyn, PyArrayMethods};
use pocketlm_engine::reserved;
use pocketlm_engine::store::{Bytes, DenseType, Kind, Tensor, TensorData, WeightStore};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyTuple};

use crate::arguments::{Integer, elements, optional, threads as asked};
use crate::errors::{parameter, to_python};

/// Dimensions of an array at most, as in NumPy.
const MOST_DIMENSIONS: usize = 64;

/// Weights by name, mapped from safetensors files or added from memory.
#[pyclass(frozen, name = "WeightStore", module = "pocketlm._core")]
#[derive(Default)]
pub(crate) struct PyWeightStore {
    /// Shared with engines; changed by copying what is shared.
    store: Mutex<Arc<WeightStore>>,
}

/// What a tensor is, without its values.
#[pyclass(frozen, get_all, name = "TensorInfo", module = "pocketlm._core")]
pub(crate) struct PyTensorInfo {
    name: String,
    kind: String,
    shape: Py<PyTuple>,
    elements: usize,
    bits: f64,
    bytes: usize,
    file: Option<PathBuf>,
}

impl PyWeightStore {
    /// The store as it is now; later additions do not show.
    pub(crate) fn shared(&self) -> Arc<WeightStore> {
        Arc::clone(&self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, Arc<WeightStore>> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, py: Python<'_>, change: impl Send + FnOnce(&mut WeightStore) -> T) -> T
    where
        T: Send,
    {
        py.detach(|| change(Arc::make_mut(&mut self.lock())))
    }

    fn tensor(&self, name: &str) -> PyResult<Arc<Tensor>> {
        self.lock().get(name).cloned().map_err(to_python)
    }
}

#[pymethods]
impl PyWeightStore {
    #[new]
    fn new() -> Self {
        Self::default()
    }

    /// Maps one safetensors file and adds its tensors: all, or none if it raises.
    fn open(&self, py: Python<'_>, path: PathBuf) -> PyResult<()> {
        self.change(py, |store| store.open(&path)).map_err(to_python)
    }

    /// Adds a copy of an array of float32, float16, bfloat16, or uint16 bits of the 16-bit type that `dtype` names.
    #[pyo3(signature = (name, array, dtype=None))]
    fn add(&self, py: Python<'_>, name: &str, array: &Bound<'_, PyAny>, dtype: Option<&str>) -> PyResult<()> {
        let dtype = element_type(array, dtype)?;
        let len = |len: Bound<'_, PyAny>| len.extract::<Integer>()?.to("array");
        let shape: Vec<usize> = elements("array", &array.getattr("shape")?, MOST_DIMENSIONS, len)?;
        // `tobytes` copies in row-major order whatever the array's strides.
        let bytes = Bytes::copy(array.call_method0("tobytes")?.cast::<PyBytes>()?.as_bytes());
        self.change(py, |store| store.add_dense(name, dtype, &shape, bytes)).map_err(to_python)
    }

    /// Adds a palettized weight of `shape` [rows, columns] from its parts, as the bytes of uint8, int8 and float16 arrays.
    fn add_palette(
        &self,
        py: Python<'_>,
        name: &str,
        kind: &str,
        shape: [Integer; 2],
        codes: &Bound<'_, PyAny>,
        codebook: &Bound<'_, PyAny>,
        scale: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let kind = palette_kind(kind)?;
        let shape = [shape[0].to("shape")?, shape[1].to("shape")?];
        // Copies, which nobody changes while the interpreter is released.
        let bytes = |part: &Bound<'_, PyAny>| -> PyResult<Vec<u8>> {
            Ok(part.call_method0("tobytes")?.cast_into::<PyBytes>()?.as_bytes().to_vec())
        };
        let (codes, codebook, scale) = (bytes(codes)?, bytes(codebook)?, bytes(scale)?);
        let add = |store: &mut WeightStore| store.add_palette(name, kind, shape, &codes, &codebook, &scale);
        self.change(py, add).map_err(to_python)
    }

    /// A store of these tensors, those of `tops` in the place of others of the same name; later ones win. Shares memory.
    #[pyo3(signature = (*tops))]
    fn overlay(&self, tops: Vec<PyRef<'_, Self>>) -> Self {
        let all = tops.iter().fold((*self.shared()).clone(), |store, top| store.overlay(&top.shared()));
        Self { store: Mutex::new(Arc::new(all)) }
    }

    /// A hexadecimal number that says which weights these are: their names, kinds, shapes and bytes.
    #[pyo3(signature = (*, threads=None))]
    fn fingerprint(&self, py: Python<'_>, threads: Option<Integer>) -> PyResult<String> {
        let store = self.shared();
        let threads = asked(threads)?;
        py.detach(|| store.fingerprint(threads)).map(|number| format!("{number:032x}")).map_err(to_python)
    }

    /// Names of all tensors, ascending.
    fn names(&self) -> Vec<String> {
        self.shared().tensors().map(|tensor| tensor.name().to_owned()).collect()
    }

    fn __contains__(&self, name: &str) -> bool {
        self.shared().contains(name)
    }

    fn __len__(&self) -> usize {
        self.shared().tensors().count()
    }

    /// Kind, shape and size of a tensor.
    fn info(&self, py: Python<'_>, name: &str) -> PyResult<PyTensorInfo> {
        let tensor = self.tensor(name)?;
        let (elements, bytes) = (tensor.elements(), tensor.bytes());
        Ok(PyTensorInfo {
            name: tensor.name().to_owned(),
            kind: tensor.kind_name().to_owned(),
            shape: PyTuple::new(py, tensor.shape())?.unbind(),
            elements,
            bits: if elements == 0 { 0.0 } else { bytes as f64 * 8.0 / elements as f64 },
            bytes,
            file: tensor.file().map(Into::into),
        })
    }

    /// Values as float32, rows `start` to `stop` of the first dimension.
    #[pyo3(signature = (name, start=None, stop=None))]
    fn dense<'py>(
        &self,
        py: Python<'py>,
        name: &str,
        start: Option<Integer>,
        stop: Option<Integer>,
    ) -> PyResult<Bound<'py, PyArrayDyn<f32>>> {
        let (start, stop) = (optional("start", start)?, optional("stop", stop)?);
        let tensor = self.tensor(name)?;
        let mut shape = tensor.shape().to_vec();
        let values = match shape.first().copied() {
            Some(rows) if shape.len() > 1 => {
                let (start, stop) = (start.unwrap_or(0), stop.unwrap_or(rows));
                let values = py.detach(|| tensor.rows_f32(start..stop)).map_err(to_python)?;
                shape[0] = stop - start;
                values
            }
            _ => {
                let values = tensor.to_f32().map_err(to_python)?;
                let (start, stop) = (start.unwrap_or(0), stop.unwrap_or(values.len()));
                let part = values
                    .get(start..stop)
                    .ok_or_else(|| parameter("start, stop", "outside of the tensor"))?;
                if let Some(len) = shape.first_mut() {
                    *len = part.len();
                }
                copy_of(part, name)?
            }
        };
        // NumPy's arrays have no more than 64 dimensions.
        let refused = |_| to_python(tensor.error(format!("has {} dimensions", tensor.shape().len())));
        PyArray1::from_vec(py, values).reshape(shape).map_err(refused)
    }

    /// Stored bytes `start` to `stop` of a tensor that is not palettized.
    #[pyo3(
        signature = (name, start=Integer::from(0), stop=None),
        text_signature = "($self, name, start=0, stop=None)"
    )]
    fn raw<'py>(
        &self,
        py: Python<'py>,
        name: &str,
        start: Integer,
        stop: Option<Integer>,
    ) -> PyResult<Bound<'py, PyArray1<u8>>> {
        let (start, stop): (usize, _) = (start.to("start")?, optional("stop", stop)?);
        let tensor = self.tensor(name)?;
        let bytes = match tensor.data() {
            TensorData::Dense { bytes, .. } | TensorData::Opaque { bytes, .. } => bytes.as_slice(),
            TensorData::Palette { .. } => return Err(to_python(tensor.error("is palettized"))),
        };
        let part = bytes.get(start..stop.unwrap_or(bytes.len()));
        let part = part.ok_or_else(|| parameter("start, stop", "outside of the tensor"))?;
        Ok(PyArray1::from_vec(py, copy_of(part, name)?))
    }

    /// Gives back the memory of the tensor's pages in a mapped file; they are read again when needed.
    fn release(&self, name: &str) -> PyResult<()> {
        self.tensor(name)?.release();
        Ok(())
    }

    /// The files' metadata, the first file's values first.
    fn metadata(&self) -> BTreeMap<String, String> {
        self.shared().metadata().clone()
    }

    /// Raises `WeightError` if a value of the tensor (of any tensor, by ascending name) is NaN or infinite.
    #[pyo3(signature = (name=None, *, threads=None))]
    fn check_finite(&self, py: Python<'_>, name: Option<&str>, threads: Option<Integer>) -> PyResult<()> {
        let threads = asked(threads)?;
        match name {
            Some(name) => {
                let tensor = self.tensor(name)?;
                py.detach(|| tensor.check_finite()).map_err(to_python)
            }
            None => {
                let store = self.shared();
                py.detach(|| store.check_finite(threads)).map_err(to_python)
            }
        }
    }
}

/// A copy of part of a tensor, in memory that NumPy takes over.
fn copy_of<T: Copy>(part: &[T], name: &str) -> PyResult<Vec<T>> {
    let mut copy = reserved(part.len(), &format!("a copy of {name:?}")).map_err(to_python)?;
    copy.extend_from_slice(part);
    Ok(copy)
}

/// Every palettized kind: see `_core.pyi`.
#[pyfunction]
pub(crate) fn palette_kinds() -> Vec<(&'static str, usize, usize, (i8, i8))> {
    Kind::ALL.into_iter().map(|kind| (kind.name(), kind.bits(), kind.codebook_len(), kind.grid())).collect()
}

/// The palettized kind of that name.
pub(crate) fn palette_kind(name: &str) -> PyResult<Kind> {
    Kind::from_name(name).ok_or_else(|| {
        let known = Kind::ALL.map(Kind::name).join(", ");
        parameter("kind", format!("{name:?} is not one of {known}"))
    })
}

/// The element type of an array, of NumPy or alike.
pub(crate) fn element_type(array: &Bound<'_, PyAny>, dtype: Option<&str>) -> PyResult<DenseType> {
    let own = array.getattr("dtype")?;
    let name: String = own.getattr("name")?.extract()?;
    let swapped = own.getattr("byteorder")?.extract::<String>()? == ">";
    match (name.as_str(), dtype, swapped) {
        ("float32", None | Some("f32"), false) => Ok(DenseType::F32),
        ("float16", None | Some("f16"), false) | ("uint16", Some("f16"), false) => Ok(DenseType::F16),
        ("bfloat16", None | Some("bf16"), false) | ("uint16", Some("bf16"), false) => Ok(DenseType::Bf16),
        _ => Err(parameter(
            "array",
            format!("cannot take elements of {name} as {}", dtype.unwrap_or("weights")),
        )),
    }
}
