//! Whole weights: independence of threads and storage order, refusals by name.

use pocketlm_kernels::{Dense, DenseType, Palette};

use super::*;

fn weights(rows: usize, cols: usize) -> Vec<f32> {
    (0..rows * cols).map(|i| ((i as f32) * 0.37).sin() * ((i % 13) as f32)).collect()
}

fn source<'a>(dense: Dense<'a>, transposed: bool, importance: Option<&'a [f32]>) -> Source<'a> {
    Source { name: "w", file: None, dense, transposed, importance }
}

fn done(result: Result<Option<Palettized>, EngineError>) -> Palettized {
    result.unwrap().unwrap()
}

#[test]
fn threads_and_storage_order_do_not_matter() {
    let (rows, cols) = (37, 45);
    let plain = weights(rows, cols);
    let mut turned = vec![0.0; plain.len()];
    for (i, &w) in plain.iter().enumerate() {
        turned[i % cols * rows + i / cols] = w;
    }
    let h: Vec<f32> = (0..cols).map(|i| i as f32).collect();
    let every: Vec<f32> = (0..rows).flat_map(|_| h.clone()).collect();
    for kind in Kind::ALL {
        let dense = Dense::from_f32(rows, cols, &plain).unwrap();
        let one = done(palettize(&source(dense, false, Some(&h)), kind, 1, &mut |_| true));
        assert_eq!(one, done(palettize(&source(dense, false, Some(&h)), kind, 3, &mut |_| true)));
        let transposed = source(Dense::from_f32(cols, rows, &turned).unwrap(), true, Some(&h));
        assert_eq!(one, done(palettize(&transposed, kind, 2, &mut |_| true)));
        let per_element = done(palettize(&source(dense, false, Some(&every)), kind, 2, &mut |_| true));
        assert_eq!(one.codes, per_element.codes);
        let bits: Vec<u16> = one.scale.iter().map(|s| s.to_bits()).collect();
        Palette::new(kind, rows, cols, &one.codes, &one.codebook, &bits).unwrap().check_values().unwrap();
        let measured =
            measure(&source(dense, false, Some(&h)), kind, 100, 2, &mut |_| true).unwrap().unwrap();
        assert_eq!(measured, one.fit);
    }
}

#[test]
fn what_cannot_be_palettized_is_refused_by_name() {
    let mut values = weights(20, 40);
    values[18 * 40 + 7] = f32::NAN;
    let dense = Dense::from_f32(20, 40, &values).unwrap();
    let message = palettize(&source(dense, false, None), Kind::P4, 2, &mut |_| true).unwrap_err().to_string();
    assert!(message.contains("\"w\"") && message.contains("[18, 7]"), "{message}");
    let empty = Dense::new(DenseType::F16, 0, 40, &[]).unwrap();
    assert!(palettize(&source(empty, false, None), Kind::P4, 2, &mut |_| true).is_err());
    let good = weights(20, 40);
    let dense = Dense::from_f32(20, 40, &good).unwrap();
    assert!(palettize(&source(dense, false, Some(&[1.0; 39])), Kind::P4, 2, &mut |_| true).is_err());
    assert!(palettize(&source(dense, false, Some(&[-1.0; 40])), Kind::P4, 2, &mut |_| true).is_err());
    assert_eq!(palettize(&source(dense, false, None), Kind::P4, 2, &mut |_| false), Ok(None));
}
