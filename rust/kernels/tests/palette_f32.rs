//! The precise product of palettized weights: against its definition bit for bit, and against float64.

mod common;

use common::{Random, UNIT, assert_close, assert_same, kernels};
use pocketlm_kernels::formats::pack;
use pocketlm_kernels::{Kind, Palette, reference};
use proptest::prelude::*;

fn check(seed: u64, kind: Kind, rows: usize, cols: usize, m: usize) {
    let mut random = Random(seed);
    let codes: Vec<u8> =
        (0..rows * kind.codes_per_row(cols)).map(|_| random.below(kind.codes()) as u8).collect();
    let packed = pack(kind, rows, cols, &codes).unwrap();
    let (low, high) = kind.grid();
    let entry = |random: &mut Random| {
        (i32::from(low) + random.below((high as i32 - low as i32) as usize + 1) as i32) as i8
    };
    let codebook: Vec<i8> =
        (0..rows.div_ceil(16) * kind.codebook_len()).map(|_| entry(&mut random)).collect();
    let scale: Vec<u16> = (0..rows).map(|_| half::f16::from_f32(random.normal()).to_bits()).collect();
    let w = Palette::new(kind, rows, cols, &packed, &codebook, &scale).unwrap();
    let stride = cols + random.below(4);
    let x = random.normals(m * stride, 1.0);
    let from = random.below(w.tiles());
    let width = (w.tiles() - from) * 16;
    let mut expected = vec![0.0; m * width];
    for (i, y) in expected.iter_mut().enumerate() {
        let n = from * 16 + i % width;
        if n < rows {
            let x = &x[i / width * stride..][..cols];
            let sum =
                x.iter().enumerate().fold(0f32, |acc, (k, &x)| f32::from(w.value(n, k)).mul_add(x, acc));
            let scale = half::f16::from_bits(scale[n]);
            *y = sum * scale.to_f32();
            let row: Vec<f64> = (0..cols).map(|k| f64::from(w.value(n, k)) * scale.to_f64()).collect();
            let (exact, size) = reference::dot(&row, x);
            // One rounding for each input, and one for the scale.
            assert_close("palette_f32", &[*y], &[exact], |_| 1.01 * (cols + 1) as f64 * UNIT * size + 1e-44);
        }
    }
    for k in kernels() {
        let mut got = vec![f32::NAN; m * width];
        k.matmul_palette_f32(&w, &x, m, stride, from..w.tiles(), &mut got).unwrap();
        assert_same(&format!("{} {}", kind.name(), k.level()), &got, &expected);
        assert!(k.matmul_palette_f32(&w, &x, m, stride, from..w.tiles() + 1, &mut got).is_err());
        assert!(k.matmul_palette_f32(&w, &x, m + 1, stride, from..w.tiles(), &mut got).is_err());
        got.push(0.0);
        assert!(k.matmul_palette_f32(&w, &x, m, stride, from..w.tiles(), &mut got).is_err());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(80))]
    #[test]
    fn any_shape(seed: u64, kind in 0..Kind::ALL.len(), rows in 1usize..150, cols in 1usize..300, m in 0usize..14) {
        check(seed, Kind::ALL[kind], rows, cols, m);
    }
}
