//! Arguments from Python that must not fail in a way of their own: integers of any size, sequences of any length, arrays of any shape.

use std::fmt::Display;
use std::ops::Not;

use numpy::ndarray::{ArrayView, Dimension};
use numpy::{Element, PyArrayMethods, PyReadonlyArray, PyReadonlyArray1, PyUntypedArrayMethods};
use pocketlm_engine::pool::thread_count;
use pocketlm_engine::reserved;
use pyo3::exceptions::PyOverflowError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyString, PyTuple};

use crate::errors::{parameter, to_python};

/// Token ids in one argument at most: more than the context of any model, and no more than 64 MiB.
pub(crate) const MOST_IDS: usize = 1 << 24;
/// Elements of other sequences at most, where nothing else bounds them.
pub(crate) const MOST_ELEMENTS: usize = 1 << 20;

/// An integer of any size: only where the argument's name is known is it said to be out of range. (PyO3 raises Python's
/// `OverflowError` for what a Rust type does not hold.) What is not an integer is a `TypeError`.
///
/// PyO3 does not show the default of such an argument, so functions that have one give their `text_signature`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Integer {
    /// None beyond 128 bits.
    value: Option<i128>,
}

impl From<i128> for Integer {
    fn from(value: i128) -> Self {
        Self { value: Some(value) }
    }
}

impl FromPyObject<'_, '_> for Integer {
    type Error = PyErr;

    fn extract(number: Borrowed<'_, '_, PyAny>) -> PyResult<Self> {
        let overflow = |error: &PyErr| error.is_instance_of::<PyOverflowError>(number.py());
        // 64 bits first: more take several calls of Python's.
        let value = number
            .extract::<i64>()
            .map(i128::from)
            .or_else(|error| if overflow(&error) { number.extract() } else { Err(error) });
        match value {
            Ok(value) => Ok(Self { value: Some(value) }),
            Err(error) if overflow(&error) => Ok(Self { value: None }),
            Err(error) => Err(error),
        }
    }
}

impl Integer {
    /// The number as an unsigned type.
    ///
    /// # Errors
    /// `ParameterError` about the argument `name` if it is negative or too large.
    pub fn to<T: TryFrom<i128> + Default + Not<Output = T> + Display>(self, name: &str) -> PyResult<T> {
        self.value.and_then(|value| T::try_from(value).ok()).ok_or_else(|| {
            let number = self.value.map_or("out of range".into(), |value| value.to_string());
            // All bits of an unsigned type: its largest value.
            parameter(name, format!("is {number}, must be from 0 to {}", !T::default()))
        })
    }

    /// The number, if it has 128 bits at most.
    ///
    /// # Errors
    /// `ParameterError` about the argument `name`.
    pub fn signed(self, name: &str) -> PyResult<i128> {
        self.value.ok_or_else(|| parameter(name, "has more than 128 bits"))
    }
}

/// [`Integer::to`] of an argument that may be left out.
///
/// # Errors
/// As that.
pub(crate) fn optional<T>(name: &str, number: Option<Integer>) -> PyResult<Option<T>>
where
    T: TryFrom<i128> + Default + Not<Output = T> + Display,
{
    number.map(|number| number.to(name)).transpose()
}

/// The number of threads that an argument `threads` asks for.
///
/// # Errors
/// `ParameterError` if it is out of range.
pub(crate) fn threads(asked: Option<Integer>) -> PyResult<usize> {
    thread_count(optional("threads", asked)?).map_err(to_python)
}

/// What `make` makes of each element of a sequence of at most `most`. A `Vec` that PyO3 extracts takes the memory that the sequence's
/// length claims, whatever that is, and ends the process where there is none; this takes what there are elements for.
///
/// # Errors
/// `ParameterError` about the argument `name` if it is no sequence or too long; what iterating or `make` raises.
pub(crate) fn elements<'py, T>(
    name: &str,
    sequence: &Bound<'py, PyAny>,
    most: usize,
    mut make: impl FnMut(Bound<'py, PyAny>) -> PyResult<T>,
) -> PyResult<Vec<T>> {
    // As Python's C interface decides; a text is a sequence of texts without end.
    let not = sequence.is_instance_of::<PyDict>() || sequence.is_instance_of::<PyString>();
    if not || !sequence.hasattr("__getitem__")? {
        return Err(parameter(name, "must be a sequence"));
    }
    let len = sequence.len().unwrap_or(0);
    let too_long = |len: usize| parameter(name, format!("has {len} elements or more, may have {most}"));
    if len > most {
        return Err(too_long(len));
    }
    // The length is only a hint, and those of classes may be wrong.
    let mut found = Vec::with_capacity(len.min(1 << 10));
    for element in sequence.try_iter()? {
        if found.len() == most {
            return Err(too_long(most + 1));
        }
        found.push(make(element?)?);
    }
    Ok(found)
}

/// Token ids from an array of integers or a sequence of them.
///
/// # Errors
/// `ParameterError` about the argument `name` if they are not that, too many, or out of range.
pub(crate) fn token_ids(name: &str, ids: &Bound<'_, PyAny>) -> PyResult<Vec<u32>> {
    // Lists first: asking whether something is an array imports NumPy, which takes longer than loading a model.
    let plain = ids.is_instance_of::<PyList>() || ids.is_instance_of::<PyTuple>();
    if !plain && let Ok(array) = ids.extract::<PyReadonlyArray1<'_, u32>>()
        // What is longer is refused below, and what cannot be viewed is looked at one by one.
        && array.len() <= MOST_IDS
        && let Ok(view) = view(name, &array)
    {
        return Ok(view.to_vec());
    }
    elements(name, ids, MOST_IDS, |id| {
        let id: Integer = id.extract().map_err(|_| parameter(name, "must be integers, in one dimension"))?;
        id.to(name)
    })
}

/// A view of an array's numbers. The crate's own counts strides in whole numbers and asks nothing of where they begin, so that of a field of
/// packed records it reads what lies between.
///
/// # Errors
/// `ParameterError` about the argument `name` if numbers do not lie at multiples of their size.
pub(crate) fn view<'a, T: Element, D: Dimension>(
    name: &str,
    array: &'a PyReadonlyArray<'_, T, D>,
) -> PyResult<ArrayView<'a, T, D>> {
    let size = size_of::<T>();
    let whole = array.strides().iter().all(|stride| stride.unsigned_abs().is_multiple_of(size));
    let viewable = array.is_empty() || (whole && array.data().is_aligned());
    if !viewable {
        let reason = format!("its numbers do not lie at multiples of {size} bytes; give a copy");
        return Err(parameter(name, reason));
    }
    Ok(array.as_array())
}

/// A copy of an array's numbers: its owner may change it while the interpreter is released.
///
/// # Errors
/// As for [`view`]; `MemoryLimitError` about the argument `name`: an array of any shape may repeat a single number in memory.
pub(crate) fn copied<D: Dimension>(name: &str, array: &PyReadonlyArray<'_, f32, D>) -> PyResult<Vec<f32>> {
    let array = view(name, array)?;
    let mut copy = reserved(array.len(), &format!("a copy of {name}")).map_err(to_python)?;
    copy.extend(array.iter());
    Ok(copy)
}
