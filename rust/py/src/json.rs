//! Forms of JSON that a `tokenizer.json` has: objects in their order, and pairs of texts. Texts stay in the file where they can.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

/// A text, borrowed from the file where it holds no escape.
struct Text<'de>(Cow<'de, str>);

impl<'de> Deserialize<'de> for Text<'de> {
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

/// The members of an object in their order, doubles included.
pub(crate) struct Pairs<'de, V>(pub Vec<(Cow<'de, str>, V)>);

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Pairs<'de, V> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Each<V>(PhantomData<V>);
        impl<'de, V: Deserialize<'de>> Visitor<'de> for Each<V> {
            type Value = Pairs<'de, V>;

            fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
                to.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut found = Vec::new();
                while let Some((Text(key), value)) = map.next_entry()? {
                    found.push((key, value));
                }
                Ok(Pairs(found))
            }
        }
        from.deserialize_map(Each(PhantomData))
    }
}

/// A `tokenizer.json`: its model, and its other members, unread. No key is there twice.
pub(crate) struct File<'de> {
    pub model: Model<'de>,
    pub others: Others<'de>,
}

/// The model of a byte-pair tokenizer: the two tables, and its other members, unread. No key is there twice.
pub(crate) struct Model<'de> {
    pub vocab: Pairs<'de, u32>,
    pub merges: Vec<Merge<'de>>,
    pub others: Others<'de>,
}

/// Reads a member that may be there once.
fn once<'de, T: Deserialize<'de>, A: MapAccess<'de>>(
    to: &mut Option<T>,
    map: &mut A,
) -> Result<(), A::Error> {
    if to.is_some() {
        return Err(A::Error::custom("a key is there twice"));
    }
    *to = Some(map.next_value()?);
    Ok(())
}

/// The other members of an object.
type Others<'de> = Vec<(Cow<'de, str>, &'de RawValue)>;

/// Those members, if none is there twice.
fn distinct<E: Error>(others: Others<'_>) -> Result<Others<'_>, E> {
    let mut seen = HashSet::new();
    let known = others.iter().all(|(key, _)| seen.insert(key));
    if known { Ok(others) } else { Err(E::custom("a key is there twice")) }
}

impl<'de> Deserialize<'de> for File<'de> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Each;
        impl<'de> Visitor<'de> for Each {
            type Value = File<'de>;

            fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
                to.write_str("a tokenizer")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<File<'de>, A::Error> {
                let (mut model, mut others) = (None, Others::new());
                while let Some(Text(key)) = map.next_key()? {
                    match &*key {
                        "model" => once(&mut model, &mut map)?,
                        _ => others.push((key, map.next_value()?)),
                    }
                }
                let model = model.ok_or_else(|| A::Error::missing_field("model"))?;
                Ok(File { model, others: distinct(others)? })
            }
        }
        from.deserialize_map(Each)
    }
}

impl<'de> Deserialize<'de> for Model<'de> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Each;
        impl<'de> Visitor<'de> for Each {
            type Value = Model<'de>;

            fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
                to.write_str("the model of a byte-pair tokenizer")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Model<'de>, A::Error> {
                let (mut vocab, mut merges, mut others) = (None, None, Others::new());
                while let Some(Text(key)) = map.next_key()? {
                    match &*key {
                        "vocab" => once(&mut vocab, &mut map)?,
                        "merges" => once(&mut merges, &mut map)?,
                        _ => others.push((key, map.next_value()?)),
                    }
                }
                let vocab = vocab.ok_or_else(|| A::Error::missing_field("vocab"))?;
                let merges = merges.ok_or_else(|| A::Error::missing_field("merges"))?;
                Ok(Model { vocab, merges, others: distinct(others)? })
            }
        }
        from.deserialize_map(Each)
    }
}

/// Two texts, and whether they are a list of two, as in newer files; older ones have texts with a space between.
pub(crate) struct Merge<'de>(pub Cow<'de, str>, pub Cow<'de, str>, pub bool);

impl<'de> Deserialize<'de> for Merge<'de> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Merge<'de>;

            fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
                to.write_str("two texts")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Merge<'de>, E> {
                match text.split_once(' ') {
                    Some((left, right)) if !right.contains(' ') => {
                        Ok(Merge(left.to_owned().into(), right.to_owned().into(), false))
                    }
                    _ => Err(E::custom("not two texts")),
                }
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Merge<'de>, A::Error> {
                let mut next = || seq.next_element::<Text<'de>>();
                match (next()?, next()?, next()?) {
                    (Some(Text(left)), Some(Text(right)), None) => Ok(Merge(left, right, true)),
                    _ => Err(A::Error::custom("not two texts")),
                }
            }
        }
        from.deserialize_any(Either)
    }
}
