//! The large tables of a byte-pair tokenizer's file, kept as they are read.
//!
//! A vocabulary of 32,000 tokens as Python's objects, and its merges as pairs of them, take longer to make than all else that
//! opens a model. Here they stay in a few arrays until a text is to be encoded; tokens are looked up by number and by text.

use std::hash::BuildHasher;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use hashbrown::{DefaultHashBuilder, HashTable};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::{PyDict, PyList, PyString, PyTuple};

use crate::arguments::{Integer, token_ids};
use crate::json::{File, Merge, Model, Pairs};

/// Vocabulary and merges of a `tokenizer.json` whose model is byte-pair encoding.
#[pyclass(frozen, name = "BytePairs", module = "pocketlm._core")]
pub(crate) struct PyBytePairs {
    vocabulary: Vocabulary,
    /// Numbers of entries of the vocabulary.
    merges: Vec<[u32; 2]>,
    /// Whether what each merge makes is a token, without a prefix.
    joined: bool,
    rest: String,
}

#[pymethods]
impl PyBytePairs {
    /// Begins to read a `tokenizer.json` in a thread of its own, which needs no lock of the interpreter; where no thread is to be had,
    /// it is read when the result is asked for.
    #[staticmethod]
    fn reading(data: PyBackedBytes) -> PyBytePairsReading {
        let (data, work) = (Arc::new(data), std::thread::Builder::new().name("pocketlm-read".into()));
        let shared = Arc::clone(&data);
        let thread = work.spawn(move || Self::parse(&shared));
        PyBytePairsReading(Mutex::new(Some(thread.map_err(|_| data))))
    }

    /// The file without the two tables, as JSON.
    #[getter]
    fn rest(&self) -> &str {
        &self.rest
    }

    /// One more than the largest id.
    #[getter]
    fn size(&self) -> u64 {
        self.vocabulary.by_id.last().map_or(0, |&(id, _)| u64::from(id) + 1)
    }

    /// Characters of the longest token.
    #[getter]
    fn longest(&self) -> usize {
        self.vocabulary.longest
    }

    /// Whether what each merge makes is a token; of a right half `skip` bytes, the prefix of inner parts of words, are left out.
    fn merges_are_tokens(&self, py: Python<'_>, skip: Integer) -> PyResult<bool> {
        let skip = skip.to("skip")?;
        // The usual case is known from the thread that read the file.
        Ok(if skip == 0 { self.joined } else { py.detach(|| self.vocabulary.has_joined(&self.merges, skip)) })
    }

    /// The id of a token.
    fn id(&self, text: &str) -> Option<u32> {
        self.vocabulary.entry(text).map(|entry| self.vocabulary.ids[entry as usize])
    }

    /// The texts of the tokens with those ids; `None` where there is none.
    fn texts(&self, ids: &Bound<'_, PyAny>) -> PyResult<Vec<Option<&str>>> {
        let Vocabulary { by_id, .. } = &self.vocabulary;
        let place = |id| by_id.binary_search_by_key(&id, |&(id, _)| id).ok();
        let text = |id| place(id).map(|at| self.vocabulary.text(by_id[at].1));
        // Short lists of plain numbers, as each token of a text asks for twice, need no look at what else they could be.
        let short = ids.cast::<PyList>().ok().filter(|list| list.len() <= 64);
        let plain = short.and_then(|list| list.iter().map(|id| id.extract::<u32>().ok()).collect());
        Ok(plain
            .map_or_else(|| token_ids("ids", ids), Ok::<Vec<u32>, PyErr>)?
            .into_iter()
            .map(text)
            .collect())
    }

    /// Every token's text, with its id, in the file's order.
    fn vocabulary<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let found = PyDict::new(py);
        for (text, id) in self.vocabulary.texts().zip(&self.vocabulary.ids) {
            found.set_item(text, id)?;
        }
        Ok(found)
    }

    /// The merges, best first. Halves that are alike are one object.
    fn merges<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let texts: Vec<_> = self.vocabulary.texts().map(|text| PyString::new(py, text)).collect();
        let found = PyList::empty(py);
        for pair in &self.merges {
            found.append(PyTuple::new(py, pair.map(|half| &texts[half as usize]))?)?;
        }
        Ok(found)
    }

    /// Number of tokens.
    fn __len__(&self) -> usize {
        self.vocabulary.ids.len()
    }
}

/// A `tokenizer.json` that is being read.
#[pyclass(frozen, name = "BytePairsReading", module = "pocketlm._core")]
pub(crate) struct PyBytePairsReading(Mutex<Option<Reading>>);

/// The thread that reads, or what it was to read.
type Reading = Result<JoinHandle<Option<PyBytePairs>>, Arc<PyBackedBytes>>;

#[pymethods]
impl PyBytePairsReading {
    /// Waits for the tables; to be called once. `None` if the file is not of the usual form: not JSON, no `model` with `vocab` (ids
    /// below 2^32, none twice) and `merges` (pairs of its texts, or texts with one space between), or a key twice.
    fn result(&self, py: Python<'_>) -> Option<PyBytePairs> {
        let reading = self.0.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        py.detach(|| match reading {
            // A thread that panicked has read nothing; the library then says what it makes of the file.
            Ok(thread) => thread.join().ok().flatten(),
            Err(data) => PyBytePairs::parse(&data),
        })
    }
}

impl PyBytePairs {
    fn parse(data: &[u8]) -> Option<Self> {
        // Looked at as text once, rather than each of its strings.
        let File { model, others } = serde_json::from_str(std::str::from_utf8(data).ok()?).ok()?;
        let Model { vocab, merges, others: options } = model;
        let vocabulary = Vocabulary::of(vocab)?;
        // The library takes one form or the other.
        if merges.windows(2).any(|two| two[0].2 != two[1].2) {
            return None;
        }
        let halves = |Merge(left, right, _)| Some([vocabulary.entry(&left)?, vocabulary.entry(&right)?]);
        let merges = merges.into_iter().map(halves).collect::<Option<Vec<_>>>()?;
        let joined = vocabulary.has_joined(&merges, 0);
        let options = object(options.iter().map(|(key, value)| (&**key, value.get())))?;
        let rest = others.iter().map(|(key, value)| (&**key, value.get())).chain([("model", &*options)]);
        Some(Self { rest: object(rest)?, vocabulary, merges, joined })
    }
}

/// The JSON of an object of such members.
fn object<'a>(members: impl IntoIterator<Item = (&'a str, &'a str)>) -> Option<String> {
    let mut json = String::from("{");
    for (key, value) in members {
        if json.len() > 1 {
            json.push(',');
        }
        json.push_str(&serde_json::to_string(key).ok()?);
        json.push(':');
        json.push_str(value);
    }
    json.push('}');
    Some(json)
}

/// Texts with their ids, both of which are there once.
struct Vocabulary {
    /// One after another.
    all: String,
    /// Where each text ends.
    ends: Vec<u32>,
    ids: Vec<u32>,
    /// Ids and entries by ascending id.
    by_id: Vec<(u32, u32)>,
    /// Entries by their text.
    by_text: HashTable<u32>,
    hasher: DefaultHashBuilder,
    /// Characters of the longest text.
    longest: usize,
}

impl Vocabulary {
    /// `None` if a text or an id is there twice, or the texts are too long for this.
    fn of(Pairs(pairs): Pairs<'_, u32>) -> Option<Self> {
        let mut found = Self {
            all: String::with_capacity(pairs.iter().map(|(text, _)| text.len()).sum()),
            ends: Vec::with_capacity(pairs.len()),
            ids: Vec::with_capacity(pairs.len()),
            by_id: Vec::new(),
            by_text: HashTable::with_capacity(pairs.len()),
            hasher: DefaultHashBuilder::default(),
            longest: 0,
        };
        for (entry, (text, id)) in (0u32..).zip(&pairs) {
            let hash = found.hasher.hash_one(text.as_bytes());
            if found.find(hash, text.as_bytes()).is_some() {
                return None;
            }
            found.all.push_str(text);
            found.ends.push(u32::try_from(found.all.len()).ok()?);
            found.ids.push(*id);
            // Not rehashed: there is room for all.
            found.by_text.insert_unique(hash, entry, |_| hash);
            // No text has more characters than bytes.
            if text.len() > found.longest {
                found.longest = found.longest.max(text.chars().count());
            }
        }
        found.by_id = found.ids.iter().copied().zip(0..).collect();
        found.by_id.sort_unstable();
        found.by_id.windows(2).all(|pair| pair[0].0 != pair[1].0).then_some(found)
    }

    /// Whether the halves of each pair are a token together; `skip` bytes of the right one are left out.
    fn has_joined(&self, pairs: &[[u32; 2]], skip: usize) -> bool {
        let (mut whole, mut next) = (String::new(), 0);
        pairs.iter().all(|&[left, right]| {
            let Some(right) = self.text(right).get(skip..) else { return false };
            whole.clear();
            whole.push_str(self.text(left));
            whole.push_str(right);
            // Most files have their tokens in the order in which merges make them.
            let found = if (next as usize) < self.ends.len() && self.text(next) == whole {
                Some(next)
            } else {
                self.entry(&whole)
            };
            next = found.map_or(0, |entry| entry + 1);
            found.is_some()
        })
    }

    fn text(&self, entry: u32) -> &str {
        &self.all[self.range(entry)]
    }

    /// Where the text of an entry lies.
    fn range(&self, entry: u32) -> Range<usize> {
        let entry = entry as usize;
        let start = if entry == 0 { 0 } else { self.ends[entry - 1] };
        start as usize..self.ends[entry] as usize
    }

    fn texts(&self) -> impl Iterator<Item = &str> {
        (0..).take(self.ends.len()).map(|entry| self.text(entry))
    }

    fn entry(&self, text: &str) -> Option<u32> {
        self.find(self.hasher.hash_one(text.as_bytes()), text.as_bytes())
    }

    fn find(&self, hash: u64, text: &[u8]) -> Option<u32> {
        self.by_text.find(hash, |&entry| &self.all.as_bytes()[self.range(entry)] == text).copied()
    }
}
