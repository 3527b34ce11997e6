//! Rows of numbers as the tests of their operations take them, and int8 rows as they were written.

use super::assert_same;
use pocketlm_kernels::{ACT_BLOCK, QuantBuffer, QuantRowMut, padded_cols, reference};

pub const LENGTHS: [usize; 14] = [0, 1, 7, 15, 16, 17, 63, 64, 65, 255, 256, 257, 700, 2048];
pub const SPECIAL: [f32; 12] = [
    0.0,
    -0.0,
    f32::NAN,
    f32::INFINITY,
    f32::NEG_INFINITY,
    f32::MAX,
    f32::MIN,
    1e-45,
    -1e-45,
    f32::MIN_POSITIVE,
    1e19,
    -1e30,
];

/// Values that cover all magnitudes, both signs, and the places where formulas change.
pub fn sweep() -> Vec<f32> {
    let mut x: Vec<f32> = (0..40_000).map(|i| (i as f32 - 20_000.0) * 0.005).collect();
    for exponent in -149..128 {
        let v = 2f64.powi(exponent) as f32;
        x.extend([v, -v, v * 1.41, v * -1.7]);
    }
    x.extend([0.625, 0.62500006, -0.625, 14.5, -14.5, 14.500001, -14.500001]);
    x
}

/// An int8 row as it was written: values with padding, scales, sums.
pub type Int8Row = (Vec<i8>, Vec<f32>, Vec<i32>);

pub fn int8_row(cols: usize, write: impl FnOnce(&mut QuantRowMut<'_>)) -> Int8Row {
    let mut buffer = QuantBuffer::new(1, cols).unwrap();
    let mut rows = buffer.as_rows_mut();
    let mut row = rows.row_mut(0).unwrap();
    row.values.fill(99);
    row.scales.fill(99.0);
    row.sums.fill(99);
    write(&mut row);
    let (values, between) = row.values.split_at(padded_cols(cols));
    assert!(between.iter().all(|&value| value == 99), "written between rows");
    (values.to_vec(), row.scales.to_vec(), row.sums.to_vec())
}

pub fn assert_same_int8(what: &str, got: &Int8Row, expected: &Int8Row) {
    assert_eq!(got.0, expected.0, "{what}: values");
    assert_same(what, &got.1, &expected.1);
    assert_eq!(got.2, expected.2, "{what}: sums");
}

pub fn reference_int8(x: &[f32]) -> Int8Row {
    let (mut values, mut scales, mut sums) = (vec![], vec![], vec![]);
    for block in x.chunks(ACT_BLOCK) {
        let (v, scale, sum) = reference::quantize(block);
        values.extend(v);
        scales.push(scale);
        sums.push(sum);
    }
    values.resize(padded_cols(x.len()), 0);
    (values, scales, sums)
}
