//! NEON int8 matrix products for many rows of activations: `smmla` multiplies 2 rows of activations by 2 outputs over 8 inputs.
//!
//! Two decoded quads of a part are zipped word by word into two operands, of outputs 0 and 1 and of 2 and 3, in which an output's
//! eight inputs lie together. A step of 8 inputs of a tile is then eight vectors, in the 128 bytes that two quads take.

use std::arch::aarch64::*;
use std::arch::asm;
use std::ops::Range;

use super::Dot;
use super::neon::NeonDotprod;
use crate::cpu::Level;
use crate::formats::{Kind, Palette, TILE, each_kind};
use crate::matmul::many::{self, Panels};
use crate::matmul::many_rows;
use crate::quantized::{QuantRows, blocks};
use crate::registry::{KernelFn, Row};
use crate::scratch::Scratch;

const LEVEL: Level = Level::NeonI8mm;
/// Vectors of a step of 8 inputs: a pair of outputs each.
const PAIRS: usize = TILE / 2;

/// Products of pairs of rows and pairs of outputs.
struct Squares;

impl Panels<NeonDotprod> for Squares {
    #[inline(always)]
    unsafe fn panels<const KIND: usize, const V: usize>(
        w: &Palette<'_>,
        x: &QuantRows<'_>,
        tile: usize,
        rows: Range<usize>,
        panel: *mut u8,
        sums: *mut f32,
    ) {
        debug_assert_eq!(V, NeonDotprod::PARTS, "a panel is one tile");
        let groups = w.cols.div_ceil(32);
        // SAFETY: the caller keeps the contract of the trait. The number of rows is rounded up to a multiple
        // of four, which CHUNK_ROWS is, so that `sums` has room; the rows of x that are read are clamped to
        // the last one. A block has at most 8 groups, which take 512 bytes each of the panel's 16 KiB.
        unsafe {
            std::slice::from_raw_parts_mut(sums, rows.len().next_multiple_of(4) * TILE).fill(0.0);
            for b in 0..blocks(w.cols) {
                let here = (groups - 8 * b).min(8);
                decode::<KIND>(w, tile, b, here, panel);
                for first in rows.clone().step_by(4) {
                    let to = sums.add((first - rows.start) * TILE);
                    match rows.end - first {
                        1 | 2 => block::<1>(x, first, rows.end - 1, b, here, panel, to),
                        _ => block::<2>(x, first, rows.end - 1, b, here, panel, to),
                    }
                }
            }
        }
    }
}

/// Decodes one activation block of a tile, step by step of 8 inputs.
///
/// # Safety
/// Needs NEON; `KIND` must be the number of w's kind; the tile must have `groups` groups of 32 inputs from
/// the block's start on, and the panel room for 512 bytes of each.
#[inline(always)]
unsafe fn decode<const KIND: usize>(
    w: &Palette<'_>,
    tile: usize,
    block: usize,
    groups: usize,
    panel: *mut u8,
) {
    let group_bytes = Kind::numbered(KIND).group_bytes();
    // SAFETY: the caller promises NEON, the groups, of the size that KIND says, and their room: a group is
    // four steps of PAIRS vectors of 16 bytes, of which each part writes two. The codebook is a tile's, so it
    // has the kind's entries.
    unsafe {
        let codes = w.tile(tile).as_ptr().add(block * 8 * group_bytes);
        let table = NeonDotprod::table::<KIND>(w.tile_codebook(tile).as_ptr());
        for g in 0..groups {
            for p in 0..NeonDotprod::PARTS {
                let group = codes.add(g * group_bytes + p * 16);
                let halves = [
                    NeonDotprod::decode::<KIND, 0>(table, group),
                    NeonDotprod::decode::<KIND, 1>(table, group),
                ];
                for (step, quads) in halves.as_flattened().chunks_exact(2).enumerate() {
                    let to = panel.add(((4 * g + step) * PAIRS + 2 * p) * 16);
                    let (a, b) = (vreinterpretq_u32_u8(quads[0]), vreinterpretq_u32_u8(quads[1]));
                    vst1q_u8(to, vreinterpretq_u8_u32(vzip1q_u32(a, b)));
                    vst1q_u8(to.add(16), vreinterpretq_u8_u32(vzip2q_u32(a, b)));
                }
            }
        }
    }
}

/// One register block: `P` pairs of rows × a tile over one activation block.
///
/// # Safety
/// Needs the instructions of the level; `last` must be a row of x that holds 32 × groups values from the
/// block's start, the panel must hold 4 × groups steps, and `to` be valid for reading and writing 2P rows of
/// 16 floats.
#[inline(always)]
unsafe fn block<const P: usize>(
    x: &QuantRows<'_>,
    first: usize,
    last: usize,
    b: usize,
    groups: usize,
    panel: *const u8,
    to: *mut f32,
) {
    let n_blocks = blocks(x.cols);
    let row: [[usize; 2]; P] = std::array::from_fn(|i| [0, 1].map(|j| (first + 2 * i + j).min(last)));
    // SAFETY: as the caller promises: rows are clamped to `last`; each of the 2 × groups double steps reads
    // 16 values of them and two steps of the panel; x has a scale for each row and block; rows of `to` are
    // the 2P that there is room for.
    unsafe {
        let values = row.map(|pair| pair.map(|r| x.values.as_ptr().add(r * x.stride + b * 256)));
        let mut sums = [[vdupq_n_s32(0); PAIRS]; P];
        for step in 0..groups * 2 {
            // Sixteen inputs of two rows, as the first and the last eight of both.
            let acts = values.map(|[a, b]| {
                let a = vreinterpretq_s64_s8(vld1q_s8(a.add(16 * step)));
                let b = vreinterpretq_s64_s8(vld1q_s8(b.add(16 * step)));
                [vtrn1q_s64(a, b), vtrn2q_s64(a, b)]
            });
            for half in 0..2 {
                let weights: [uint8x16_t; PAIRS] =
                    std::array::from_fn(|j| vld1q_u8(panel.add(((2 * step + half) * PAIRS + j) * 16)));
                for (sums, acts) in sums.iter_mut().zip(acts) {
                    for (sum, w) in sums.iter_mut().zip(weights) {
                        *sum = smmla(*sum, acts[half], w);
                    }
                }
            }
        }
        for (i, sums) in sums.into_iter().enumerate() {
            let scales = row[i].map(|r| vdupq_n_f32(*x.scales.get_unchecked(r * n_blocks + b)));
            for (p, pair) in sums.chunks_exact(2).enumerate() {
                // A sum holds two outputs of the first row, then two of the second.
                let (a, b) = (vreinterpretq_s64_s32(pair[0]), vreinterpretq_s64_s32(pair[1]));
                for (j, sum) in [vtrn1q_s64(a, b), vtrn2q_s64(a, b)].into_iter().enumerate() {
                    let at = to.add((2 * i + j) * TILE + 4 * p);
                    let sum = vcvtq_f32_s32(vreinterpretq_s32_s64(sum));
                    vst1q_f32(at, vfmaq_f32(vld1q_f32(at), sum, scales[j]));
                }
            }
        }
    }
}

/// `smmla`, as assembly: its intrinsic is not stable.
///
/// # Safety
/// Needs i8mm, in the function that this is inlined into too.
#[inline(always)]
unsafe fn smmla(sum: int32x4_t, x: int64x2_t, w: uint8x16_t) -> int32x4_t {
    let mut sum = sum;
    // SAFETY: arithmetic on registers; the caller promises the instruction.
    unsafe {
        asm!("smmla {s:v}.4s, {x:v}.16b, {w:v}.16b", s = inout(vreg) sum, x = in(vreg) x, w = in(vreg) w,
            options(pure, nomem, nostack, preserves_flags));
    }
    sum
}

/// The kernel for many rows.
///
/// # Safety
/// Needs the features that it enables; weights and lengths as for [`crate::registry::KernelFn`].
#[target_feature(enable = "neon,dotprod,i8mm")]
unsafe fn all<const KIND: usize>(
    w: &Palette<'_>,
    x: &QuantRows<'_>,
    tiles: Range<usize>,
    scratch: &mut Scratch,
    out: &mut [f32],
) {
    // SAFETY: the caller promises the features of both types, and weights of this kind whose lengths fit.
    unsafe { many::many::<NeonDotprod, Squares, KIND>(w, x, tiles, scratch, out) }
}

pub(crate) const ROWS: &[Row] = each_kind!(many_rows);
