//! The header of a safetensors file: eight bytes of length, then JSON that gives each tensor's type, shape and range.
//!
//! Types come from the `safetensors` crate. The reading is ours because the crate neither notices a name given twice nor
//! says which tensor is at fault.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::path::Path;

use safetensors::tensor::{Dtype, TensorInfo};
use serde::de::{Deserialize, DeserializeSeed, Deserializer, Error as _, MapAccess, Visitor};

use super::error::{StoreError, shorten};
use super::tensor::bits;

/// The format's own limit on the length of the JSON text.
const MAX_HEADER: u64 = 100_000_000;
const LENGTH_BYTES: usize = 8;

/// A validated header: every range lies inside the file, is as long as its shape and type say, and overlaps no other.
pub(super) struct Header {
    pub metadata: BTreeMap<String, String>,
    /// Name, type, shape, and the byte range counted from the start of the file.
    pub tensors: BTreeMap<String, Slot>,
}

/// Where a tensor lies.
pub(super) struct Slot {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub start: usize,
    pub end: usize,
}

/// Reads the header of the file whose whole contents are `bytes`.
pub(super) fn parse(file: &Path, bytes: &[u8]) -> Result<Header, StoreError> {
    let (text, data_start) = json_text(file, bytes)?;
    let data_len = bytes.len() - data_start;
    let raw = read_json(text)
        .map_err(|error| StoreError::format(file, format!("bad header: {}", describe(&error))))?;
    let mut tensors = BTreeMap::new();
    for (name, info) in raw.tensors {
        let slot =
            place(&info, data_start, data_len).map_err(|reason| StoreError::tensor(file, &name, reason))?;
        tensors.insert(name, slot);
    }
    check_cover(file, &tensors, data_start, bytes.len())?;
    Ok(Header { metadata: raw.metadata, tensors })
}

fn json_text<'a>(file: &Path, bytes: &'a [u8]) -> Result<(&'a [u8], usize), StoreError> {
    let Some((length, rest)) = bytes.split_first_chunk::<LENGTH_BYTES>() else {
        let reason = format!("{} bytes are too few for a safetensors file", bytes.len());
        return Err(StoreError::format(file, reason));
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER {
        return Err(StoreError::format(
            file,
            format!("header of {length} bytes exceeds the limit of {MAX_HEADER}"),
        ));
    }
    // At most 10^8 by now, so the conversion cannot lose bits.
    let length = length as usize;
    let Some(text) = rest.get(..length) else {
        let reason = format!("header of {length} bytes in a file of {} bytes: truncated?", bytes.len());
        return Err(StoreError::format(file, reason));
    };
    Ok((text, LENGTH_BYTES + length))
}

fn place(info: &TensorInfo, data_start: usize, data_len: usize) -> Result<Slot, String> {
    let (start, end) = info.data_offsets;
    if start > end {
        return Err(format!("range {start}..{end} runs backwards"));
    }
    if end > data_len {
        return Err(format!(
            "range {start}..{end} ends beyond the {data_len} bytes of data: truncated file?"
        ));
    }
    let Some(bits) = bits(&info.shape, info.dtype.bitsize()) else {
        return Err(format!("shape {} overflows", show_shape(&info.shape)));
    };
    if !bits.is_multiple_of(8) || bits / 8 != end - start {
        let shape = show_shape(&info.shape);
        return Err(format!("{} bytes for type {} and shape {shape}", end - start, info.dtype));
    }
    Ok(Slot {
        dtype: info.dtype,
        shape: info.shape.clone(),
        start: data_start + start,
        end: data_start + end,
    })
}

/// The format allows neither overlaps nor holes: together the tensors are the data, so that no byte is read twice or unseen.
fn check_cover(
    file: &Path,
    tensors: &BTreeMap<String, Slot>,
    data_start: usize,
    file_len: usize,
) -> Result<(), StoreError> {
    let mut order: Vec<(usize, usize, &str)> =
        tensors.iter().map(|(name, s)| (s.start, s.end, name.as_str())).collect();
    order.sort_unstable();
    let mut reached = data_start;
    for (start, end, name) in order {
        if start < reached {
            return Err(StoreError::tensor(file, name, "its bytes overlap those of another tensor"));
        }
        if start > reached {
            let reason = format!("{} bytes before it belong to no tensor", start - reached);
            return Err(StoreError::tensor(file, name, reason));
        }
        reached = end;
    }
    if reached != file_len {
        return Err(StoreError::format(
            file,
            format!("{} bytes at the end belong to no tensor", file_len - reached),
        ));
    }
    Ok(())
}

/// A shape for messages, without repeating a hostile one of a million sizes.
pub(super) fn show_shape(shape: &[usize]) -> String {
    match shape.get(..9) {
        Some(head) => format!("{head:?}… of {} sizes", shape.len()),
        None => format!("{shape:?}"),
    }
}

fn describe(error: &serde_json::Error) -> String {
    shorten(&error.to_string())
}

struct RawHeader {
    metadata: BTreeMap<String, String>,
    tensors: BTreeMap<String, TensorInfo>,
}

fn read_json(text: &[u8]) -> Result<RawHeader, serde_json::Error> {
    let text = std::str::from_utf8(text).map_err(|_| serde_json::Error::custom("not UTF-8"))?;
    serde_json::from_str(text)
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = RawHeader;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
        let mut metadata = None;
        let mut tensors = BTreeMap::new();
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                if metadata.replace(map.next_value::<BTreeMap<String, String>>()?).is_some() {
                    return Err(A::Error::custom("__metadata__ given twice"));
                }
                continue;
            }
            let info = map.next_value_seed(Named(&name))?;
            match tensors.entry(name) {
                Entry::Vacant(entry) => entry.insert(info),
                Entry::Occupied(entry) => {
                    return Err(A::Error::custom(format!("tensor {:?} given twice", shorten(entry.key()))));
                }
            };
        }
        Ok(RawHeader { metadata: metadata.unwrap_or_default(), tensors })
    }
}

/// Reads one tensor's entry, and puts its name before whatever is wrong with it.
struct Named<'n>(&'n str);

impl<'de> DeserializeSeed<'de> for Named<'_> {
    type Value = TensorInfo;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<TensorInfo, D::Error> {
        TensorInfo::deserialize(deserializer)
            .map_err(|error| D::Error::custom(format!("tensor {:?}: {error}", shorten(self.0))))
    }
}
