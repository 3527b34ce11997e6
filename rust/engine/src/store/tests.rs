//! Sound files are read; damaged and hostile ones end in errors that name what is wrong.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use half::f16;
use pocketlm_kernels::formats::pack;
use proptest::prelude::*;

use super::*;

/// A file that is removed in the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(bytes: &[u8]) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path =
            std::env::temp_dir().join(format!("pocketlm-store-{}-{number}.safetensors", std::process::id()));
        fs::write(&path, bytes).unwrap();
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// A file of this header, padded with blanks to a multiple of 64 bytes, and data.
fn file(header: &str, data: &[u8]) -> Vec<u8> {
    let mut text = header.as_bytes().to_vec();
    text.resize((text.len() + 8).next_multiple_of(64) - 8, b' ');
    [&(text.len() as u64).to_le_bytes()[..], &text, data].concat()
}

fn open(bytes: &[u8]) -> Result<WeightStore, String> {
    let scratch = Scratch::new(bytes);
    let mut store = WeightStore::new();
    store.open(&scratch.0).map_err(|error| error.to_string())?;
    Ok(store)
}

#[track_caller]
fn refused(bytes: &[u8], expected: &str) {
    let message = open(bytes).expect_err("damage was not noticed");
    assert!(message.contains(expected), "{message:?} does not say {expected:?}");
    assert!(message.contains("pocketlm-store-"), "{message:?} does not name the file");
    assert!(message.len() < 1000, "a message of {} bytes", message.len());
}

/// Two rows of 40 inputs in 4 bits, one dense vector, one tensor of indices.
fn sound() -> Vec<u8> {
    let codes: Vec<u8> = (0..80).map(|i| (i % 16) as u8).collect();
    let mut data = pack(Kind::P4, 2, 40, &codes).unwrap();
    data.extend([0.5f32, -2.0].iter().flat_map(|v| v.to_le_bytes()));
    data.extend([f16::from_f32(0.25), f16::from_f32(-1.0)].iter().flat_map(|v| v.to_le_bytes()));
    data.extend((0..16).map(|i| (i * 8 - 64) as i8 as u8));
    data.extend(7u8.to_le_bytes());
    file(HEADER, &data)
}

const HEADER: &str = r#"{"__metadata__":{"pocketlm_format_version":"1","note":"n",
"pocketlm_palettes":"{\"w\":{\"kind\":\"p4\",\"shape\":[2,40]}}"},
"w.codes":{"dtype":"U8","shape":[1,512],"data_offsets":[0,512]},
"v":{"dtype":"F32","shape":[2],"data_offsets":[512,520]},
"w.scale":{"dtype":"F16","shape":[2],"data_offsets":[520,524]},
"w.codebook":{"dtype":"I8","shape":[1,16],"data_offsets":[524,540]},
"i":{"dtype":"I8","shape":[1],"data_offsets":[540,541]}}"#;

fn sound_with(from: &str, to: &str) -> Vec<u8> {
    assert!(HEADER.contains(from));
    let old = sound();
    let data_start = 8 + u64::from_le_bytes(old[..8].try_into().unwrap()) as usize;
    file(&HEADER.replace(from, to), &old[data_start..])
}

#[test]
fn a_sound_file_is_read_in_place() {
    let store = open(&sound()).unwrap();
    let names: Vec<&str> = store.tensors().map(|tensor| tensor.name()).collect();
    assert_eq!(names, ["i", "v", "w"]);
    let w = store.get("w").unwrap();
    assert_eq!((w.kind_name(), w.shape(), w.bytes(), w.elements()), ("p4", &[2, 40][..], 512 + 16 + 4, 80));
    let palette = w.palette().unwrap();
    assert_eq!((palette.rows(), palette.cols(), palette.value(1, 3)), (2, 40, 8 * 11 - 64));
    assert_eq!(w.rows_f32(1..2).unwrap()[..3], [0.0, -8.0, -16.0].map(|v| v as f32 + 0.0));
    assert_eq!(store.get("v").unwrap().to_f32().unwrap(), [0.5, -2.0]);
    assert_eq!(store.get("i").unwrap().kind_name(), "I8");
    assert!(store.get("i").unwrap().to_f32().is_err() && w.dense().is_err() && w.rows_f32(1..3).is_err());
    assert_eq!(store.metadata().get("note").map(String::as_str), Some("n"));
    assert!(!store.metadata().contains_key(PALETTES_KEY));
    assert!(store.get("nothing").unwrap_err().to_string().contains("nothing"));
}

#[test]
fn an_overlay_stands_in_the_place_of_others() {
    let below = open(&sound()).unwrap();
    let mut top = WeightStore::new();
    top.add_dense("w", DenseType::F32, &[1, 2], Bytes::copy(&[0; 8])).unwrap();
    top.add_dense("x", DenseType::F32, &[1], Bytes::copy(&[0; 4])).unwrap();
    let both = below.overlay(&top);
    let names: Vec<&str> = both.tensors().map(|tensor| tensor.name()).collect();
    assert_eq!(names, ["i", "v", "w", "x"]);
    assert_eq!((both.get("w").unwrap().kind_name(), below.get("w").unwrap().kind_name()), ("f32", "p4"));
    // Nothing is copied.
    assert!(Arc::ptr_eq(both.get("v").unwrap(), below.get("v").unwrap()));
    assert_eq!(both.metadata(), below.metadata());
}

#[test]
fn damaged_headers_are_refused() {
    let good = sound();
    refused(&[], "empty");
    refused(&good[..5], "too few");
    refused(&good[..100], "truncated");
    refused(&good[..good.len() - 1], "\"i\": range");
    refused(&[&good[..], &[0]].concat(), "1 bytes at the end");
    refused(&[&(1u64 << 60).to_le_bytes()[..], &good[8..]].concat(), "1152921504606846976");
    refused(&[&u64::MAX.to_le_bytes()[..], &good[8..]].concat(), "exceeds the limit");
    refused(&file("{\"a\"", &[]), "bad header");
    refused(&file(&"[".repeat(100_000), &[]), "bad header");
    refused(&file("\u{0}", &[]), "bad header");
    refused(&[&4u64.to_le_bytes()[..], &[b'{', 0xff, 0xfe, b'}']].concat(), "UTF-8");
    refused(
        &file(
            r#"{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}"#,
            &[],
        ),
        "\"a\" given twice",
    );
    refused(&file(r#"{"a":{"dtype":"Q9","shape":[0],"data_offsets":[0,0]}}"#, &[]), "tensor \"a\"");
    refused(&file(r#"{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,0]}}"#, &[]), "tensor \"a\"");
    refused(
        &file(r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}"#, &[]),
        "overflows",
    );
    // No elements, and yet too many for an index into the rest.
    refused(
        &file(r#"{"a":{"dtype":"F32","shape":[0,4294967296,4294967296],"data_offsets":[0,0]}}"#, &[]),
        "overflows",
    );
    refused(&file(r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}"#, &[0; 4]), "backwards");
    refused(
        &file(r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#, &[0; 8]),
        "belong to no tensor",
    );
    refused(
        &file(r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}"#, &[0; 4]),
        "4 bytes for type F32 and shape [2]",
    );
    let overlap = r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}}"#;
    refused(&file(overlap, &[0; 6]), "\"b\": its bytes overlap");
    let long = format!(r#"{{"{}":{{"dtype":"Q9","shape":[0],"data_offsets":[0,0]}}}}"#, "x".repeat(100_000));
    refused(&file(&long, &[]), "xxx");
}

#[test]
fn damaged_palettes_are_refused() {
    refused(&sound_with("version\":\"1\"", "version\":\"2\""), "format version \"2\"");
    refused(&sound_with("p4", "p5"), "unknown kind \"p5\"");
    refused(&sound_with("p4", "p3"), "w.codes");
    refused(&sound_with("[2,40]", "[2,41,1]"), "pocketlm_palettes");
    refused(&sound_with("[2,40]", "[2,65]"), "w.codes");
    refused(&sound_with("[2,40]", "[17,40]"), "w.codes");
    refused(&sound_with("[2,40]", "[3,40]"), "w.scale");
    refused(&sound_with("[2,40]", "[0,40]"), "no elements");
    refused(&sound_with("[2,40]", "[18446744073709551615,40]"), "overflows");
    refused(&sound_with("w.codebook", "x.codebook"), "\"w.codebook\": is missing");
    refused(&sound_with("\"I8\",\"shape\":[1,16]", "\"U8\",\"shape\":[1,16]"), "w.codebook");
    refused(&sound_with("w\\\"", "i\\\""), "i.codes");
    refused(&sound_with("\"v\"", "\"w\""), "\"w\": is palettized and dense");

    let data_start = |bytes: &[u8]| 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut off_grid = sound();
    let start = data_start(&off_grid);
    off_grid[start + 524] = 100;
    refused(&off_grid, "codebook entry 100");
    let mut infinite = sound();
    infinite[start + 522..start + 524].copy_from_slice(&f16::INFINITY.to_le_bytes());
    refused(&infinite, "scale of row 1 is not finite");

    let text = HEADER.as_bytes();
    let unaligned = [&(text.len() as u64).to_le_bytes()[..], text, &sound()[start..]].concat();
    assert_ne!((8 + text.len()) % 64, 0);
    refused(&unaligned, "multiple of 64");
}

#[test]
fn values_that_are_not_finite_are_found() {
    for (dtype, size) in [(DenseType::F32, 4), (DenseType::F16, 2), (DenseType::Bf16, 2)] {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut store = WeightStore::new();
            let mut bytes = vec![0u8; 3 * 5000 * size];
            let word = match dtype {
                DenseType::F32 => bad.to_le_bytes().to_vec(),
                DenseType::F16 => f16::from_f32(bad).to_le_bytes().to_vec(),
                DenseType::Bf16 => half::bf16::from_f32(bad).to_le_bytes().to_vec(),
            };
            store.add_dense("fine", dtype, &[3, 5000], Bytes::copy(&bytes)).unwrap();
            let at = (2 * 5000 + 77) * size;
            bytes[at..at + size].copy_from_slice(&word);
            store.add_dense("bad", dtype, &[3, 5000], Bytes::copy(&bytes)).unwrap();
            assert!(store.get("fine").unwrap().check_finite().is_ok());
            let message = store.get("bad").unwrap().check_finite().unwrap_err().to_string();
            assert!(message.contains("\"bad\"") && message.contains("[2, 77]"), "{message}");
        }
    }
}

#[test]
fn what_is_added_must_fit_and_be_new() {
    let mut store = WeightStore::new();
    assert!(store.add_dense("a", DenseType::F32, &[2, 2], Bytes::copy(&[0; 15])).is_err());
    assert!(store.add_dense("a", DenseType::F32, &[usize::MAX, 2], Bytes::copy(&[])).is_err());
    assert!(store.add_dense("a", DenseType::F32, &[0, 1 << 40, 1 << 40], Bytes::copy(&[])).is_err());
    store.add_dense("a", DenseType::F32, &[2, 2], Bytes::copy(&[0; 16])).unwrap();
    assert!(store.add_dense("a", DenseType::F32, &[1], Bytes::copy(&[0; 4])).is_err());
    assert!(store.add_palette("b", Kind::P2, [1, 1], &[0; 128], &[0; 3], &[0; 2]).is_err());
    store.add_palette("b", Kind::P2, [1, 1], &[0; 128], &[0; 4], &[0; 2]).unwrap();
    assert_eq!(store.get("b").unwrap().to_f32().unwrap(), [0.0]);
    let scratch = Scratch::new(&sound());
    store.open(&scratch.0).unwrap();
    let count = store.tensors().count();
    assert!(store.open(&scratch.0).unwrap_err().to_string().contains("too"));
    assert_eq!(store.tensors().count(), count);
}

#[test]
fn paths_that_are_no_files_are_refused() {
    let mut store = WeightStore::new();
    let absent = store.open(Path::new("/nonexistent/model.safetensors")).unwrap_err();
    assert!(matches!(absent, StoreError::Missing { .. }));
    assert!(matches!(store.open(&std::env::temp_dir()).unwrap_err(), StoreError::Missing { .. }));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn no_mutation_of_a_file_does_harm(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        length in prop::option::of(any::<prop::sample::Index>()),
        words in prop::collection::vec((any::<prop::sample::Index>(), prop::sample::select(vec![
            "0", "-1", "18446744073709551615", "9223372036854775808", "1e99", "[", "}", "\"", "null", "F32", "I8", "w.codes",
        ])), 0..3),
    ) {
        let mut bytes = sound();
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        for (at, word) in words {
            let at = 8 + at.index(bytes.len() - 8);
            let end = (at + word.len()).min(bytes.len());
            bytes.splice(at..end, word.bytes());
        }
        if let Some(length) = length {
            bytes.truncate(length.index(bytes.len() + 1));
        }
        if let Ok(store) = open(&bytes) {
            for tensor in store.tensors() {
                let _ = tensor.check_finite();
                let _ = tensor.to_f32();
                prop_assert!(tensor.bytes() <= bytes.len());
            }
        }
    }
}
