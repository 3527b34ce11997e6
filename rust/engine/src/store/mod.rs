//! The weights of a model, by name: mapped from safetensors files, or added from memory.
//!
//! The file is the memory: opening a file maps it, checks its header and the few small parts that kernels rely on, and
//! reads nothing else. Whatever a file holds, opening it ends in a store or in an error that names file and tensor, and
//! allocates no more than a small multiple of the header.

mod bytes;
mod error;
mod finite;
mod header;
mod palettes;
mod tensor;
#[cfg(test)]
mod tests;
mod values;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

pub use bytes::{Bytes, LINE, MappedRange, OwnedBytes};
pub use error::StoreError;
pub use palettes::{FORMAT_VERSION, PALETTES_KEY, VERSION_KEY};
pub use pocketlm_kernels::{DenseType, Kind};
pub use tensor::{Tensor, TensorData};
pub use values::widen;

use bytes::MappedFile;
use palettes::Geometry;

use crate::error::EngineError;
use crate::pool::ThreadPool;

/// Tensors by name. Cloning is cheap and shares all bytes.
#[derive(Debug, Clone, Default)]
pub struct WeightStore {
    tensors: BTreeMap<Arc<str>, Arc<Tensor>>,
    metadata: BTreeMap<String, String>,
}

impl WeightStore {
    /// A store without tensors.
    pub fn new() -> Self {
        Self::default()
    }

    /// Maps one safetensors file and adds its tensors, all of them or (in case of an error) none.
    pub fn open(&mut self, path: &Path) -> Result<(), StoreError> {
        let file = Arc::new(MappedFile::open(path)?);
        let mut header = header::parse(path, file.bytes())?;
        let mut found = palettes::take(&file, &mut header)?;
        found.extend(header.tensors.into_iter().map(|(name, slot)| {
            let bytes = Bytes::mapped(&file, slot.start..slot.end);
            let data = match tensor::dense_type(slot.dtype) {
                Some(dtype) => TensorData::Dense { dtype, bytes },
                None => TensorData::Opaque { dtype: slot.dtype.to_string().into(), bytes },
            };
            Tensor { name: name.into(), file: Some(Arc::clone(&file.path)), shape: slot.shape, data }
        }));
        for tensor in &found {
            if let Some(other) = self.tensors.get(&tensor.name) {
                let place = other.file().map_or("memory".into(), |file| file.display().to_string());
                return Err(StoreError::tensor(path, &tensor.name, format!("is in {place} too")));
            }
        }
        self.tensors.extend(found.into_iter().map(|tensor| (Arc::clone(&tensor.name), Arc::new(tensor))));
        for (key, value) in header.metadata {
            self.metadata.entry(key).or_insert(value);
        }
        Ok(())
    }

    /// Adds a dense tensor from memory. `bytes` are its elements, row-major and little-endian.
    pub fn add_dense(
        &mut self,
        name: &str,
        dtype: DenseType,
        shape: &[usize],
        bytes: Bytes,
    ) -> Result<(), StoreError> {
        if tensor::bits(shape, 8 * dtype.size()) != bytes.len().checked_mul(8) {
            let reason = format!("{} bytes for type {} and shape {shape:?}", bytes.len(), dtype.name());
            return Err(StoreError::weight(name, None, reason));
        }
        self.add(Tensor {
            name: name.into(),
            file: None,
            shape: shape.to_vec(),
            data: TensorData::Dense { dtype, bytes },
        })
    }

    /// Adds a palettized tensor from memory; see [`TensorData::Palette`] for its parts.
    pub fn add_palette(
        &mut self,
        name: &str,
        kind: Kind,
        shape: [usize; 2],
        codes: &[u8],
        codebook: &[u8],
        scale: &[u8],
    ) -> Result<(), StoreError> {
        let [rows, cols] = shape;
        let size =
            Geometry::new(kind, rows, cols).map_err(|reason| StoreError::weight(name, None, reason))?;
        for (part, bytes, expected) in [
            ("codes", codes.len(), size.tiles * size.bytes_per_tile),
            ("codebook", codebook.len(), size.tiles * kind.codebook_len()),
            ("scale", scale.len(), rows * 2),
        ] {
            if bytes != expected {
                let reason = format!(
                    "{bytes} bytes of {part} for {} of shape {shape:?}, must be {expected}",
                    kind.name()
                );
                return Err(StoreError::weight(name, None, reason));
            }
        }
        let [codes, codebook, scale] = [codes, codebook, scale].map(Bytes::copy);
        self.add(palettes::palette(name.into(), None, kind, shape, codes, codebook, scale)?)
    }

    fn add(&mut self, tensor: Tensor) -> Result<(), StoreError> {
        if self.tensors.contains_key(&tensor.name) {
            return Err(tensor.error("is in the store already"));
        }
        self.tensors.insert(Arc::clone(&tensor.name), Arc::new(tensor));
        Ok(())
    }

    /// These tensors, those of `top` in the place of others of the same name. Shares all bytes.
    #[must_use]
    pub fn overlay(&self, top: &Self) -> Self {
        let mut both = self.clone();
        both.tensors.extend(top.tensors.iter().map(|(name, tensor)| (Arc::clone(name), Arc::clone(tensor))));
        both
    }

    /// The tensor of that name.
    pub fn get(&self, name: &str) -> Result<&Arc<Tensor>, StoreError> {
        self.tensors.get(name).ok_or_else(|| StoreError::weight(name, None, "is missing"))
    }

    /// Whether there is a tensor of that name.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// All tensors, by ascending name.
    pub fn tensors(&self) -> impl Iterator<Item = &Arc<Tensor>> {
        self.tensors.values()
    }

    /// [`Tensor::check_finite`] of every tensor, on `threads` threads. The error is that of the first name.
    pub fn check_finite(&self, threads: usize) -> Result<(), EngineError> {
        let tensors: Vec<&Tensor> = self.tensors().map(Arc::as_ref).collect();
        let next = AtomicUsize::new(0);
        let failures = Mutex::new(BTreeMap::new());
        ThreadPool::global().run(threads, |_| {
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some(tensor) = tensors.get(index) else { return };
                if let Err(error) = tensor.check_finite() {
                    failures.lock().unwrap_or_else(PoisonError::into_inner).insert(index, error);
                    // Names before this one are taken already; those after it no longer matter.
                    next.store(tensors.len(), Ordering::Relaxed);
                }
            }
        })?;
        let failures = failures.into_inner().unwrap_or_else(PoisonError::into_inner);
        failures.into_iter().next().map_or(Ok(()), |(_, error)| Err(error.into()))
    }

    /// A number that says which weights these are: that of every tensor ([`Tensor::fingerprint`]) in order of names.
    ///
    /// # Errors
    /// When a worker fails.
    pub fn fingerprint(&self, threads: usize) -> Result<u128, EngineError> {
        let tensors: Vec<&Tensor> = self.tensors().map(Arc::as_ref).collect();
        let next = AtomicUsize::new(0);
        let found = Mutex::new(vec![0u128; tensors.len()]);
        ThreadPool::global().run(threads, |_| {
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some(tensor) = tensors.get(index) else { return };
                let fingerprint = tensor.fingerprint();
                found.lock().unwrap_or_else(PoisonError::into_inner)[index] = fingerprint;
            }
        })?;
        let found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
        let bytes: Vec<u8> = found.iter().flat_map(|fingerprint| fingerprint.to_le_bytes()).collect();
        Ok(xxhash_rust::xxh3::xxh3_128(&bytes))
    }

    /// The files' metadata, first file first, without the description of palettized tensors.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }
}
