//! AMX: int8 products of whole tiles, for many rows of activations.
//!
//! A tile register holds 16 rows of 64 bytes. Sixteen rows of activations × 64 inputs are one as they lie in memory, and so are the
//! decoded lines of 64 inputs × 16 outputs: a line is four inputs of each output, which is how `tdpbssd` takes its second
//! factor. Products of an activation block of 256 inputs add up in the tiles; then they are stored, converted and added
//! to the float sums in the order of every other kernel.

mod detect;
mod unit;

use std::arch::x86_64::*;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::Range;

pub(crate) use detect::{State, state};
pub(crate) use unit::products;
use unit::{Amx, LINE, SIDE, TileUnit};

use super::Dot;
use super::avx512::{self, Avx512};
use crate::cpu::Level;
use crate::formats::{Kind, Palette, each_kind};
use crate::matmul::many::{self, Panels};
use crate::matmul::many_rows;
use crate::quantized::{ACT_BLOCK, QuantRows, blocks};
use crate::registry::{KernelFn, Row};
use crate::scratch::Scratch;

const LEVEL: Level = Level::Avx512Amx;
/// Weights of this level: signed, looked up by VBMI.
type Signed = Avx512<true, 0>;
/// Rows of activations from which tiles are used: two registers full.
const LEAST_ROWS: usize = 2 * SIDE;

/// Products by a tile unit.
struct Tiles<U>(PhantomData<U>);

/// Where rows that do not fill their registers are copied to, and where products are stored. Written before it is read.
#[repr(C, align(64))]
struct Buffers {
    acts: MaybeUninit<[i8; 2 * SIDE * ACT_BLOCK]>,
    products: MaybeUninit<[i32; 4 * SIDE * SIDE]>,
}

impl<U: TileUnit> Panels<Signed> for Tiles<U> {
    #[inline(always)]
    unsafe fn panels<const KIND: usize, const V: usize>(
        w: &Palette<'_>,
        x: &QuantRows<'_>,
        tile: usize,
        rows: Range<usize>,
        panel: *mut u8,
        sums: *mut f32,
    ) {
        let groups = w.cols.div_ceil(32);
        let mut buffers = Buffers { acts: MaybeUninit::uninit(), products: MaybeUninit::uninit() };
        // SAFETY: the caller keeps the contract of the trait: `sums` has room for CHUNK_ROWS rows of four
        // tiles, a panel for 64 quads of V lines, which are the 8 groups that a block has at most, a group of
        // zeros behind an odd number included. Rows of x are padded to a multiple of 64 inputs, so that whole
        // steps of 64 are readable; what `block` reads are whole registers of them, or a copy of fewer that
        // is made up with zeros. x has a scale for each row and block.
        unsafe {
            std::slice::from_raw_parts_mut(sums, rows.len() * V * SIDE).fill(0.0);
            for b in 0..blocks(w.cols) {
                let here = (groups - 8 * b).min(8);
                for v in 0..V {
                    many::decode::<Signed, KIND, V>(w, tile + v, b, here, panel.add(v * LINE));
                }
                if here % 2 == 1 {
                    panel.add(here * 8 * V * LINE).write_bytes(0, 8 * V * LINE);
                }
                for first in rows.clone().step_by(2 * SIDE) {
                    let count = (rows.end - first).min(2 * SIDE);
                    let mut acts = (x.values.as_ptr().add(first * x.stride + b * ACT_BLOCK), x.stride);
                    if !count.is_multiple_of(SIDE) {
                        acts = copy(acts, count, here.div_ceil(2) * LINE, buffers.acts.as_mut_ptr().cast());
                    }
                    let to = sums.add((first - rows.start) * V * SIDE);
                    let scales = x.scales.as_ptr().add(first * blocks(x.cols) + b);
                    block::<U, V>(
                        acts,
                        count,
                        here.div_ceil(2),
                        panel,
                        &mut buffers.products,
                        |row, v, sum| {
                            let at = to.add((row * V + v) * SIDE);
                            let scale = Signed::splat(*scales.add(row * blocks(x.cols)));
                            Signed::store_f(at, Signed::fma(Signed::float(sum), scale, Signed::load_f(at)));
                        },
                    );
                }
            }
        }
    }
}

/// Copies `count` rows of `width` bytes to `to`, one behind the other, and fills the last register's missing rows with zeros.
///
/// # Safety
/// `from` must be valid for reading the rows, `stride` apart; `to` must be memory apart from them with room
/// for `count` rows, rounded up to a multiple of 16, of `width` bytes.
unsafe fn copy(
    (from, stride): (*const i8, usize),
    count: usize,
    width: usize,
    to: *mut i8,
) -> (*const i8, usize) {
    // SAFETY: rows below `count` are read, which the caller promises; all that are written lie one behind the
    // other in the room at `to`.
    unsafe {
        for row in 0..count.next_multiple_of(SIDE) {
            match row < count {
                true => to.add(row * width).copy_from_nonoverlapping(from.add(row * stride), width),
                false => to.add(row * width).write_bytes(0, width),
            }
        }
    }
    (to, width)
}

/// The products of up to 32 rows × the `V` tiles of a panel over `steps` × 64 inputs: `take(row, tile, sums of the tile's outputs)`.
///
/// # Safety
/// Needs AVX-512 F. The unit must be ready and `steps` be 1 to 4; `acts` must be valid for reading `count`
/// rows, rounded up to a multiple of 16 and at most 32, of 64 × `steps` bytes, `stride` apart; the panel must
/// hold 16 × `steps` quads of `V` lines, and `V` be 1 or even.
#[inline(always)]
unsafe fn block<U: TileUnit, const V: usize>(
    (acts, stride): (*const i8, usize),
    count: usize,
    steps: usize,
    panel: *const u8,
    products: &mut MaybeUninit<[i32; 4 * SIDE * SIDE]>,
    mut take: impl FnMut(usize, usize, __m512i),
) {
    let products: *mut i32 = products.as_mut_ptr().cast();
    let mut flush = |rows: Range<usize>, v: usize, from: *const i32| {
        for (i, row) in rows.enumerate() {
            // SAFETY: `from` is a product, 16 rows of 16 sums that the unit has written; its rows are no more
            // than 16.
            take(row, v, unsafe { _mm512_loadu_si512(from.add(i * SIDE).cast()) });
        }
    };
    // SAFETY: as the caller promises: with more than 16 rows there are 32 to read, and with V even a line has
    // a neighbour. `products` has room for four, of which `flush` reads those that were just written.
    unsafe {
        if V > 1 && count > SIDE {
            for v in (0..V).step_by(2) {
                U::four(acts, stride, panel.add(v * LINE), V * LINE, steps, products);
                for part in 0..4 {
                    let first = part / 2 * SIDE;
                    let rows = first..count.min(first + SIDE);
                    flush(rows, v + part % 2, products.add(part * SIDE * SIDE));
                }
            }
            return;
        }
        for first in (0..count).step_by(SIDE) {
            for v in 0..V {
                U::one(acts.add(first * stride), stride, panel.add(v * LINE), V * LINE, steps, products);
                flush(first..count.min(first + SIDE), v, products);
            }
        }
    }
}

/// The kernel for many rows.
///
/// # Safety
/// Needs the features that it enables and AMX, which the system must have permitted; weights and lengths as
/// for [`crate::registry::KernelFn`].
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
unsafe fn all<const KIND: usize>(
    w: &Palette<'_>,
    x: &QuantRows<'_>,
    tiles: Range<usize>,
    scratch: &mut Scratch,
    out: &mut [f32],
) {
    // SAFETY: the caller promises the features and AMX, and weights of this kind whose lengths fit. The unit
    // is ready while `_ready` lives, which is until the product is done.
    unsafe {
        if x.rows < LEAST_ROWS {
            return avx512::vbmi::all::<KIND>(w, x, tiles, scratch, out);
        }
        let _ready = Amx::begin();
        many::many::<Signed, Tiles<Amx>, KIND>(w, x, tiles, scratch, out);
    }
}

pub(crate) const ROWS: &[Row] = each_kind!(many_rows);

#[cfg(test)]
mod tests {
    use super::unit::Emulated;
    use super::*;
    use crate::matmul::scalar;

    /// The kernel as above, with tiles in plain Rust.
    ///
    /// # Safety
    /// As above, but for AMX.
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    unsafe fn emulated<const KIND: usize>(
        w: &Palette<'_>,
        x: &QuantRows<'_>,
        tiles: Range<usize>,
        scratch: &mut Scratch,
        out: &mut [f32],
    ) {
        // SAFETY: the caller promises the features, and weights of this kind whose lengths fit; this unit is
        // always ready.
        unsafe { many::many::<Signed, Tiles<Emulated>, KIND>(w, x, tiles, scratch, out) }
    }

    #[test]
    fn all_but_the_instructions_themselves_is_exact() {
        if !Level::Avx512Vbmi.is_available() {
            println!("not exercised: tiles on emulated AMX need AVX-512 VBMI");
            return;
        }
        macro_rules! kernels {
            ($($kind:ident)*) => { [$((Kind::$kind, emulated::<{ Kind::$kind as usize }> as crate::registry::MatmulPaletteFn)),*] };
        }
        for (kind, kernel) in each_kind!(kernels) {
            for (rows, cols, m) in
                [(80, 321, 33), (16, 32, 32), (33, 64, 47), (70, 1030, 64), (130, 257, 300), (64, 255, 17)]
            {
                let (case, x) = (detect::Sample::new(kind, rows, cols), detect::activations(m, cols));
                let w = case.palette();
                let tiles = w.tiles() / 3..w.tiles();
                let mut got = vec![f32::NAN; m * tiles.len() * 16];
                let mut expected = got.clone();
                // SAFETY: the level is available but for AMX, which is emulated; the kernel is that of the
                // weight's kind, and lengths follow from the shapes.
                unsafe {
                    kernel(&w, &x.as_rows(), tiles.clone(), &mut Scratch::new(), &mut got);
                    scalar::matmul(&w, &x.as_rows(), tiles.clone(), &mut Scratch::new(), &mut expected);
                }
                let same = got.iter().zip(&expected).all(|(a, b)| a.to_bits() == b.to_bits());
                assert!(same, "{} {rows} x {cols}, {m} rows", kind.name());
            }
        }
    }
}
