//! The large tables of a byte-pair tokenizer's file, read straight into Python's objects.
//!
//! Python's own parser makes a list of every merge and a string of every half of one, which then become tuples; here a merge is a
//! tuple at once, and its halves are the vocabulary's strings.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::fmt;

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyString, PyTuple};
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

/// Vocabulary, merges, and the rest of a `tokenizer.json` as a JSON text without them. `None` if `data` is not of that form:
/// not JSON, no `model` with `vocab` (ids below 2^32) and `merges` (pairs of texts, or texts with one space between), or a key twice.
#[pyfunction]
pub fn read_byte_pairs<'py>(
    py: Python<'py>,
    data: &[u8],
) -> Option<(Bound<'py, PyDict>, Bound<'py, PyList>, String)> {
    let mut tables = Tables { py, vocabulary: None, merges: None, texts: HashMap::new() };
    let mut parser = serde_json::Deserializer::from_slice(data);
    let rest = Object { tables: &mut tables, is_model: false }.deserialize(&mut parser).ok()?;
    parser.end().ok()?;
    Some((tables.vocabulary?, tables.merges?, rest))
}

struct Tables<'py, 'de> {
    py: Python<'py>,
    vocabulary: Option<Bound<'py, PyDict>>,
    merges: Option<Bound<'py, PyList>>,
    /// The vocabulary's strings.
    texts: HashMap<Cow<'de, str>, Bound<'py, PyString>>,
}

impl<'py> Tables<'py, '_> {
    fn text(&self, text: &str) -> Bound<'py, PyString> {
        self.texts.get(text).cloned().unwrap_or_else(|| PyString::new(self.py, text))
    }

    fn pair(&self, left: &str, right: &str) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(self.py, [self.text(left), self.text(right)])
    }
}

/// Python fails here where memory does.
fn failed<E: Error>(error: PyErr) -> E {
    E::custom(error)
}

/// The file's object, or its `model`: yields what is not a table, as JSON.
struct Object<'a, 'py, 'de> {
    tables: &'a mut Tables<'py, 'de>,
    is_model: bool,
}

impl<'de> DeserializeSeed<'de> for Object<'_, '_, 'de> {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<String, D::Error> {
        from.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Object<'_, '_, 'de> {
    type Value = String;

    fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<String, A::Error> {
        let Self { tables, is_model } = self;
        let (mut rest, mut seen) = (String::from("{"), HashSet::new());
        while let Some(key) = map.next_key::<String>()? {
            match (is_model, key.as_str()) {
                (true, "vocab") => map.next_value_seed(Vocabulary(tables))?,
                (true, "merges") => map.next_value_seed(Merges(tables))?,
                (_, name) => {
                    if rest.len() > 1 {
                        rest.push(',');
                    }
                    rest.push_str(&serde_json::to_string(name).map_err(A::Error::custom)?);
                    rest.push(':');
                    if !is_model && name == "model" {
                        rest.push_str(&map.next_value_seed(Object { tables, is_model: true })?);
                    } else {
                        rest.push_str(map.next_value::<&RawValue>()?.get());
                    }
                }
            }
            if !seen.insert(key) {
                return Err(A::Error::custom("a key is there twice"));
            }
        }
        rest.push('}');
        Ok(rest)
    }
}

struct Vocabulary<'a, 'py, 'de>(&'a mut Tables<'py, 'de>);

impl<'de> DeserializeSeed<'de> for Vocabulary<'_, '_, 'de> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Vocabulary<'_, '_, 'de> {
    type Value = ();

    fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str("an object of ids")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Self(tables) = self;
        let found = PyDict::new(tables.py);
        while let Some(Text(key)) = map.next_key::<Text<'de>>()? {
            let text = PyString::new(tables.py, &key);
            found.set_item(&text, map.next_value::<u32>()?).map_err(failed)?;
            tables.texts.insert(key, text);
        }
        tables.vocabulary = Some(found);
        Ok(())
    }
}

struct Merges<'a, 'py, 'de>(&'a mut Tables<'py, 'de>);

impl<'de> DeserializeSeed<'de> for Merges<'_, '_, 'de> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Merges<'_, '_, 'de> {
    type Value = ();

    fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str("a list of merges")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let Self(tables) = self;
        let found = PyList::empty(tables.py);
        while let Some(pair) = seq.next_element_seed(Merge(tables))? {
            found.append(pair).map_err(failed)?;
        }
        tables.merges = Some(found);
        Ok(())
    }
}

/// Published files have lists of two, older ones texts with a space between.
struct Merge<'a, 'py, 'de>(&'a Tables<'py, 'de>);

impl<'py, 'de> DeserializeSeed<'de> for Merge<'_, 'py, '_> {
    type Value = Bound<'py, PyTuple>;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Self::Value, D::Error> {
        from.deserialize_any(self)
    }
}

impl<'py, 'de> Visitor<'de> for Merge<'_, 'py, '_> {
    type Value = Bound<'py, PyTuple>;

    fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str("two texts")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        match text.split_once(' ') {
            Some((left, right)) if !right.contains(' ') => self.0.pair(left, right).map_err(failed),
            _ => Err(E::custom("not two texts")),
        }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut next = || seq.next_element::<Text<'de>>();
        match (next()?, next()?, next()?) {
            (Some(Text(left)), Some(Text(right)), None) => self.0.pair(&left, &right).map_err(failed),
            _ => Err(A::Error::custom("not two texts")),
        }
    }
}

/// A text, borrowed from the file where it holds no escape.
struct Text<'de>(Cow<'de, str>);

impl<'de> serde::Deserialize<'de> for Text<'de> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Text<'de>;

            fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
                to.write_str("a text")
            }

            fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Borrowed(text)))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }
        from.deserialize_str(Either)
    }
}
