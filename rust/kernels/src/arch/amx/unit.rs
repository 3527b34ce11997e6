//! The tile unit: configuration, and products of tiles in one piece of assembly each.
//!
//! Registers of tiles are named in the assembly: the compiler has no type for them, and nothing of it keeps values there.

use std::arch::asm;

/// Rows of a tile register, and 32-bit columns.
pub(super) const SIDE: usize = 16;
/// Bytes of a row: 64 inputs of a row of activations, or four inputs of 16 outputs.
pub(super) const LINE: usize = 64;

/// Products of 16 rows of activations × 16 outputs, over `steps` × 64 inputs (1 to 4 steps).
///
/// # Safety
/// Of both methods: the unit is ready (for the processor's, a [`Ready`] of this thread lives), and `steps` is
/// not 0. Nothing needs alignment but `products`, which has that of an `i32`.
pub(super) trait TileUnit {
    /// The product of 16 rows and one line of each quad.
    ///
    /// # Safety
    /// As above. `acts` is valid for reading 16 rows of 64 × `steps` bytes, `act_stride` apart; `weights` for
    /// 16 × `steps` lines of 64 bytes, `weight_stride` apart; `products` is valid for writing 16 rows of 16
    /// sums.
    unsafe fn one(
        acts: *const i8,
        act_stride: usize,
        weights: *const u8,
        weight_stride: usize,
        steps: usize,
        products: *mut i32,
    );

    /// The four products of 32 rows and two neighbouring lines of each quad, by rows, then by lines.
    ///
    /// # Safety
    /// As above. `acts` is valid for reading 32 rows of 64 × `steps` bytes, `act_stride` apart; `weights` for
    /// 16 × `steps` pairs of lines, 128 bytes, `weight_stride` apart; `products` is valid for writing four
    /// times 16 rows of 16 sums.
    unsafe fn four(
        acts: *const i8,
        act_stride: usize,
        weights: *const u8,
        weight_stride: usize,
        steps: usize,
        products: *mut i32,
    );
}

/// The processor's.
pub(super) struct Amx;

/// How registers are used, in the form that `ldtilecfg` reads.
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// All eight registers in full.
static CONFIG: Config = {
    let mut config =
        Config { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
    let mut register = 0;
    while register < 8 {
        config.row_bytes[register] = LINE as u16;
        config.rows[register] = SIDE as u8;
        register += 1;
    }
    config
};

/// While it lives the thread's tile unit is ready. Afterwards its state is empty, so that the system need not save it.
pub(super) struct Ready(());

impl Amx {
    /// Makes the unit ready.
    ///
    /// # Safety
    /// The processor must have AMX, and the system have permitted it.
    pub(super) unsafe fn begin() -> Ready {
        // SAFETY: the caller promises the instruction; the configuration is 64 bytes in the form of palette
        // 1, and asks for no more than its eight registers of 16 rows of 64 bytes. The compiler keeps
        // nothing in them.
        unsafe {
            asm!("ldtilecfg [{config}]", config = in(reg) &raw const CONFIG,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(readonly, nostack, preserves_flags));
        }
        Ready(())
    }
}

impl Drop for Ready {
    fn drop(&mut self) {
        // SAFETY: a value exists only after `begin`, so the instruction does; it touches nothing but the tile
        // registers.
        unsafe {
            asm!("tilerelease",
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nomem, nostack, preserves_flags));
        }
    }
}

impl TileUnit for Amx {
    #[inline(always)]
    unsafe fn one(
        acts: *const i8,
        act_stride: usize,
        weights: *const u8,
        weight_stride: usize,
        steps: usize,
        products: *mut i32,
    ) {
        // SAFETY: the caller promises that the unit is ready, with all registers in full, and the memory that
        // the trait names. The loop runs `steps` times, which is not 0, each on 64 bytes of every row and 16
        // lines or pairs of them.
        unsafe {
            asm!(
                "tilezero tmm0",
                "2:",
                "tileloadd tmm4, [{a} + {sa}*1]",
                "tileloadd tmm6, [{b} + {sb}*1]",
                "tdpbssd tmm0, tmm4, tmm6",
                "add {a}, 64",
                "add {b}, {next}",
                "dec {n}",
                "jnz 2b",
                "tilestored [{c} + {sc}*1], tmm0",
                a = inout(reg) acts => _,
                sa = in(reg) act_stride,
                b = inout(reg) weights => _,
                sb = in(reg) weight_stride,
                next = in(reg) SIDE * weight_stride,
                n = inout(reg) steps => _,
                c = in(reg) products,
                sc = in(reg) SIDE * 4,
                out("tmm0") _, out("tmm4") _, out("tmm6") _,
                options(nostack),
            );
        }
    }

    #[inline(always)]
    unsafe fn four(
        acts: *const i8,
        act_stride: usize,
        weights: *const u8,
        weight_stride: usize,
        steps: usize,
        products: *mut i32,
    ) {
        // SAFETY: the caller promises that the unit is ready, with all registers in full, and the memory that
        // the trait names. The loop runs `steps` times, which is not 0, each on 64 bytes of every row and 16
        // lines or pairs of them.
        unsafe {
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "2:",
                "tileloadd tmm4, [{a} + {sa}*1]",
                "tileloadd tmm6, [{b} + {sb}*1]",
                "tdpbssd tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{b} + {sb}*1 + 64]",
                "tdpbssd tmm1, tmm4, tmm7",
                "tileloadd tmm5, [{lower} + {sa}*1]",
                "tdpbssd tmm2, tmm5, tmm6",
                "tdpbssd tmm3, tmm5, tmm7",
                "add {a}, 64",
                "add {lower}, 64",
                "add {b}, {next}",
                "dec {n}",
                "jnz 2b",
                "tilestored [{c} + {sc}*1], tmm0",
                "tilestored [{c} + {sc}*1 + 1024], tmm1",
                "tilestored [{c} + {sc}*1 + 2048], tmm2",
                "tilestored [{c} + {sc}*1 + 3072], tmm3",
                a = inout(reg) acts => _,
                lower = inout(reg) acts.add(SIDE * act_stride) => _,
                sa = in(reg) act_stride,
                b = inout(reg) weights => _,
                sb = in(reg) weight_stride,
                next = in(reg) SIDE * weight_stride,
                n = inout(reg) steps => _,
                c = in(reg) products,
                sc = in(reg) SIDE * 4,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }
}

/// Products that wait for nothing, for measuring speed: eight of 16 × 16 × 64 multiply-adds in each round.
///
/// # Safety
/// The processor must have AMX, and the system have permitted it.
pub(crate) unsafe fn products(rounds: u64) {
    if rounds == 0 {
        return;
    }
    // SAFETY: the caller promises the instructions; the loop runs `rounds` times, which is not 0, on
    // registers alone, which `begin` has made ready and cleared.
    unsafe {
        let _ready = Amx::begin();
        asm!(
            "2:",
            "tdpbssd tmm0, tmm4, tmm6",
            "tdpbssd tmm1, tmm4, tmm7",
            "tdpbssd tmm2, tmm5, tmm6",
            "tdpbssd tmm3, tmm5, tmm7",
            "tdpbssd tmm0, tmm4, tmm6",
            "tdpbssd tmm1, tmm4, tmm7",
            "tdpbssd tmm2, tmm5, tmm6",
            "tdpbssd tmm3, tmm5, tmm7",
            "dec {n}",
            "jnz 2b",
            n = inout(reg) rounds => _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nomem, nostack),
        );
    }
}

/// A stand-in with the same meaning, instruction by instruction, in plain Rust: for tests on processors without AMX.
#[cfg(test)]
pub(super) struct Emulated;

#[cfg(test)]
type Register = [[u8; LINE]; SIDE];

#[cfg(test)]
impl Emulated {
    /// `tileloadd`.
    ///
    /// # Safety
    /// `from` must be valid for reading 16 rows of 64 bytes, `stride` apart.
    unsafe fn load(from: *const u8, stride: usize) -> Register {
        // SAFETY: the caller promises these 16 rows; an array of bytes needs no alignment.
        std::array::from_fn(|row| unsafe { from.add(row * stride).cast::<[u8; LINE]>().read() })
    }

    /// `tdpbssd`: `sums[m][n] += Σ_k Σ_i a[m][4k + i] · b[k][4n + i]`, all signed.
    fn dot(sums: &mut [[i32; SIDE]; SIDE], a: &Register, b: &Register) {
        for (sums, a) in sums.iter_mut().zip(a) {
            for (k, b) in b.iter().enumerate() {
                for (n, sum) in sums.iter_mut().enumerate() {
                    for i in 0..4 {
                        *sum += i32::from(a[4 * k + i] as i8) * i32::from(b[4 * n + i] as i8);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
impl TileUnit for Emulated {
    unsafe fn one(
        acts: *const i8,
        act_stride: usize,
        weights: *const u8,
        weight_stride: usize,
        steps: usize,
        products: *mut i32,
    ) {
        let mut sums = [[0i32; SIDE]; SIDE];
        // SAFETY: the caller keeps the contract of the trait: a step reads 64 bytes of 16 rows and 16 lines,
        // and there is aligned room for the 16 rows of sums.
        unsafe {
            for step in 0..steps {
                let a = Self::load(acts.add(step * LINE).cast(), act_stride);
                let b = Self::load(weights.add(step * SIDE * weight_stride), weight_stride);
                Self::dot(&mut sums, &a, &b);
            }
            products.cast::<[[i32; SIDE]; SIDE]>().write(sums);
        }
    }

    unsafe fn four(
        acts: *const i8,
        act_stride: usize,
        weights: *const u8,
        weight_stride: usize,
        steps: usize,
        products: *mut i32,
    ) {
        for part in 0..4 {
            // SAFETY: the caller keeps the contract of the trait, which names 32 rows, both lines, and room
            // for all four.
            unsafe {
                let acts = acts.add(part / 2 * SIDE * act_stride);
                let weights = weights.add(part % 2 * LINE);
                let products = products.add(part * SIDE * SIDE);
                Self::one(acts, act_stride, weights, weight_stride, steps, products);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_has_the_form_that_the_processor_reads() {
        assert_eq!(size_of::<Config>(), 64);
        assert_eq!(std::mem::offset_of!(Config, row_bytes), 16);
        assert_eq!(std::mem::offset_of!(Config, rows), 48);
        assert_eq!((CONFIG.palette, CONFIG.start_row), (1, 0));
        assert_eq!(CONFIG.row_bytes, [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(CONFIG.rows, [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0]);
    }
}
