//! Finds the palettized tensors of a file: `X.codes`, `X.codebook` and `X.scale`, described in the file's metadata.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use pocketlm_kernels::{Kind, TILE};
use safetensors::tensor::Dtype;
use serde::Deserialize;

use super::bytes::{Bytes, LINE, MappedFile};
use super::error::{StoreError, shorten};
use super::header::{Header, Slot, show_shape};
use super::tensor::{Tensor, TensorData};

/// Version of pocketlm's own tensors. Files of another version are refused.
pub const FORMAT_VERSION: &str = "1";
/// Metadata key of the version.
pub const VERSION_KEY: &str = "pocketlm_format_version";
/// Metadata key of the palettized tensors: JSON `{"X": {"kind": "p4", "shape": [rows, cols]}}`.
pub const PALETTES_KEY: &str = "pocketlm_palettes";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Description {
    kind: String,
    shape: [usize; 2],
}

/// Takes the parts of palettized tensors out of `header` and returns the tensors that they form.
pub(super) fn take(file: &Arc<MappedFile>, header: &mut Header) -> Result<Vec<Tensor>, StoreError> {
    let path = &*file.path;
    match header.metadata.get(VERSION_KEY).map(String::as_str) {
        None => return Ok(Vec::new()),
        Some(FORMAT_VERSION) => {}
        Some(other) => {
            let reason = format!("format version {:?}, this build reads {FORMAT_VERSION:?}", shorten(other));
            return Err(StoreError::format(path, reason));
        }
    }
    let Some(text) = header.metadata.remove(PALETTES_KEY) else {
        return Ok(Vec::new());
    };
    let descriptions: BTreeMap<String, Description> = serde_json::from_str(&text).map_err(|error| {
        StoreError::format(path, format!("bad {PALETTES_KEY}: {}", shorten(&error.to_string())))
    })?;
    descriptions.into_iter().map(|(name, description)| form(file, header, name, &description)).collect()
}

fn form(
    file: &Arc<MappedFile>,
    header: &mut Header,
    name: String,
    description: &Description,
) -> Result<Tensor, StoreError> {
    let bad = |part: &str, reason: String| StoreError::tensor(&file.path, &format!("{name}{part}"), reason);
    let kind = Kind::from_name(&description.kind)
        .ok_or_else(|| bad("", format!("unknown kind {:?}", shorten(&description.kind))))?;
    let [rows, cols] = description.shape;
    let size = Geometry::new(kind, rows, cols).map_err(|reason| bad("", reason))?;
    let mut part = |suffix: &str, dtype: Dtype, shape: &[usize]| -> Result<Range<usize>, StoreError> {
        let slot = header.tensors.remove(&format!("{name}{suffix}"));
        let slot = slot.ok_or_else(|| bad(suffix, format!("is missing from a {} tensor", kind.name())))?;
        expect(&slot, dtype, shape).map_err(|reason| bad(suffix, reason))?;
        Ok(slot.start..slot.end)
    };
    let codes = Bytes::mapped(file, part(".codes", Dtype::U8, &[size.tiles, size.bytes_per_tile])?);
    let codebook = match kind.codebook_len() {
        0 => Bytes::copy(&[]),
        entries => Bytes::mapped(file, part(".codebook", Dtype::I8, &[size.tiles, entries])?),
    };
    let scale = Bytes::mapped(file, part(".scale", Dtype::F16, &[rows])?);
    if !codes.is_aligned(LINE) {
        return Err(bad(".codes", format!("does not start at a multiple of {LINE} bytes")));
    }
    if !scale.is_aligned(2) {
        return Err(bad(".scale", "does not start at an even byte".into()));
    }
    if header.tensors.contains_key(&name) {
        return Err(bad("", "is palettized and dense in one file".into()));
    }
    let file = Some(Arc::clone(&file.path));
    palette(name.into(), file, kind, [rows, cols], codes, codebook, scale)
}

/// A tensor of parts whose lengths fit `shape`; looks at the values of scales and codebooks.
pub(super) fn palette(
    name: Arc<str>,
    file: Option<Arc<Path>>,
    kind: Kind,
    shape: [usize; 2],
    codes: Bytes,
    codebook: Bytes,
    scale: Bytes,
) -> Result<Tensor, StoreError> {
    let (low, high) = kind.grid();
    let outside = codebook.as_i8().iter().find(|entry| !(low..=high).contains(entry)).copied();
    let tensor = Tensor {
        name,
        file,
        shape: shape.to_vec(),
        data: TensorData::Palette { kind, codes, codebook, scale },
    };
    if let Some(entry) = outside {
        return Err(tensor.error(format!("codebook entry {entry} is outside of {low}..={high}")));
    }
    tensor.check_finite()?;
    Ok(tensor)
}

/// Sizes of the parts of a palettized matrix.
pub(super) struct Geometry {
    pub tiles: usize,
    pub bytes_per_tile: usize,
}

impl Geometry {
    pub fn new(kind: Kind, rows: usize, cols: usize) -> Result<Self, String> {
        if rows == 0 || cols == 0 {
            return Err(format!("shape [{rows}, {cols}] has no elements"));
        }
        let tiles = rows.div_ceil(TILE);
        match (kind.bytes_per_tile(cols), kind.code_bytes(rows, cols), rows.checked_mul(cols)) {
            (Ok(bytes_per_tile), Ok(_), Some(_)) => Ok(Self { tiles, bytes_per_tile }),
            _ => Err(format!("shape [{rows}, {cols}] overflows")),
        }
    }
}

fn expect(slot: &Slot, dtype: Dtype, shape: &[usize]) -> Result<(), String> {
    if slot.dtype != dtype {
        return Err(format!("has type {}, must be {dtype}", slot.dtype));
    }
    if slot.shape != shape {
        return Err(format!("has shape {}, must be {shape:?}", show_shape(&slot.shape)));
    }
    Ok(())
}
