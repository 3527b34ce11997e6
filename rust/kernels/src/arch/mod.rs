//! Int8 dot products of each instruction set, behind one trait.
//!
//! A line of 64 bytes holds 16 rows × 4 inputs once its codes are decoded: a *quad*. A vector `V` covers one of
//! `PARTS` equal parts of it (all 16 rows in AVX-512, 8 in AVX2, 4 in NEON), and `Sum` one int32 per row of that part.
//! Kernels are written once over this trait and instantiated inside functions with `#[target_feature]`.

#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod codes;
#[cfg(target_arch = "aarch64")]
pub(crate) mod i8mm;
#[cfg(target_arch = "aarch64")]
pub(crate) mod neon;
#[cfg(target_arch = "x86_64")]
mod ymm;

/// Weights in int8 times activations in int8. `KIND` is the number of the weights' [`crate::Kind`].
///
/// # Safety
/// Of every `unsafe` method, in the trait as in its implementations: the CPU has the instructions of the
/// type. Pointers must be valid for the bytes that the method names; no alignment is needed. (The method is
/// to be inlined into a function that enables the instructions: elsewhere it is slow, or its assembly
/// refused.)
///
/// Kernels step through memory by `PARTS` and the sizes of `V` and `F`: [`fits`] says whether these agree.
pub(crate) trait Dot {
    /// Vectors per quad: 64 / bytes of `V`.
    const PARTS: usize;
    /// How many bytes ahead of the codes the kernels for one row and two ask for memory where arithmetic is no bound; 0 where the
    /// processor's own prefetchers do better. Unless it is 0, panels ask for the codes of the next panel.
    const AHEAD_OF_STREAMS: usize = 0;
    /// Whether a sum waits for an addition only, not for a whole product: then few rows need no independent sums, and have more
    /// registers for weights.
    const ONE_CHAIN: bool = false;
    /// Weights of one part of a quad, or a table of a tile's codebook.
    type V: Copy;
    /// Sixteen activations of a row.
    type X: Copy;
    /// Integer sums of the rows of a part.
    type Sum: Copy;
    /// Float sums of the rows of a part: `64 / 4 / PARTS` lanes.
    type F: Copy;

    /// What decoded weights have been raised by, so that they are unsigned.
    fn bias<const KIND: usize>() -> i32;
    /// Rows of activations of the block that the kernel for many rows keeps in registers: 2, 3, 4 or 6.
    fn block<const KIND: usize>() -> usize;
    /// Whether [`Dot::dot2`] takes fewer instructions than two [`Dot::dot1`].
    #[inline(always)]
    fn joins<const KIND: usize>() -> bool {
        false
    }
    /// The tables for the codebook of a tile at `codebook`, of which the kind's number of entries is read. The second table holds
    /// the second elements of pairs, or serves the second of two codes in one index; else it is the first again.
    ///
    /// # Safety
    /// The CPU has the instructions; `codebook` is valid for reading `codebook_len` bytes of the kind (for
    /// `P8` none).
    unsafe fn table<const KIND: usize>(codebook: *const i8) -> [Self::V; 2];
    /// One part of the four quads of half `HALF` (0, 1) of a group of 32 inputs, decoded. `group` points at the part in
    /// the first line of the group.
    ///
    /// # Safety
    /// The CPU has the instructions; `group` is valid for reading the kind's bytes of a group less the part's
    /// offset.
    unsafe fn decode<const KIND: usize, const HALF: usize>(
        table: [Self::V; 2],
        group: *const u8,
    ) -> [Self::V; 4];
    /// Sixteen activations at `p`.
    ///
    /// # Safety
    /// The CPU has the instructions; `p` is valid for reading 16 bytes for as long as the result is used: it
    /// may be nothing but the pointer.
    unsafe fn acts(p: *const i8) -> Self::X;
    /// `sum + Σ w · x[4Q..4Q+4]` for each row.
    ///
    /// # Safety
    /// The CPU has the instructions; `x` came from [`Dot::acts`], and its memory is still valid for reading.
    unsafe fn dot1<const KIND: usize, const Q: usize>(sum: Self::Sum, w: Self::V, x: Self::X) -> Self::Sum;
    /// All lanes `start` (which is 0 where the bias is).
    ///
    /// # Safety
    /// The CPU has the instructions, as for every method below that has no pointer.
    unsafe fn sum(start: i32) -> Self::Sum;
    /// Lane by lane.
    ///
    /// # Safety
    /// As [`Dot::sum`].
    unsafe fn add(a: Self::Sum, b: Self::Sum) -> Self::Sum;
    /// One vector of weights.
    ///
    /// # Safety
    /// The CPU has the instructions; `p` is valid for reading the bytes of a `V`.
    unsafe fn load(p: *const u8) -> Self::V;
    /// One vector of weights.
    ///
    /// # Safety
    /// The CPU has the instructions; `p` is valid for writing the bytes of a `V`.
    unsafe fn store(p: *mut u8, v: Self::V);

    /// A vector of decoded weights as floats, less the bias: inputs 0, 1, 2, 3 of the quad.
    ///
    /// # Safety
    /// As [`Dot::sum`].
    unsafe fn floats<const KIND: usize>(v: Self::V) -> [Self::F; 4];
    /// Sums as floats (exact: below 2^24).
    ///
    /// # Safety
    /// As [`Dot::sum`].
    unsafe fn float(sum: Self::Sum) -> Self::F;
    /// All lanes `x`.
    ///
    /// # Safety
    /// As [`Dot::sum`].
    unsafe fn splat(x: f32) -> Self::F;
    /// `a * b + c`, rounded once.
    ///
    /// # Safety
    /// As [`Dot::sum`].
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// `a * b`.
    ///
    /// # Safety
    /// As [`Dot::sum`].
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    /// Floats at `p`.
    ///
    /// # Safety
    /// The CPU has the instructions; `p` is valid for reading the bytes of an `F`.
    unsafe fn load_f(p: *const f32) -> Self::F;
    /// Floats to `p`.
    ///
    /// # Safety
    /// The CPU has the instructions; `p` is valid for writing the bytes of an `F`.
    unsafe fn store_f(p: *mut f32, v: Self::F);
    /// Hints that the line at `p`, which may be any address, will be read: it goes to the second-level cache.
    ///
    /// # Safety
    /// As [`Dot::sum`]: no address makes the hint fault.
    unsafe fn prefetch(p: *const u8);

    /// `sum + Σ w[0] · x[4Q..4Q+4] + Σ w[1] · x[4Q+4..4Q+8]` for each row; `Q` is 0 or 2.
    ///
    /// # Safety
    /// As [`Dot::dot1`].
    #[inline(always)]
    unsafe fn dot2<const KIND: usize, const Q: usize>(
        sum: Self::Sum,
        w: [Self::V; 2],
        x: Self::X,
    ) -> Self::Sum {
        // SAFETY: the caller's promise is that of each call.
        unsafe {
            match Q {
                0 => Self::dot1::<KIND, 1>(Self::dot1::<KIND, 0>(sum, w[0], x), w[1], x),
                _ => Self::dot1::<KIND, 3>(Self::dot1::<KIND, 2>(sum, w[0], x), w[1], x),
            }
        }
    }

    /// Adds the dot products of four quads to `CHAINS` (1, 2, 4) independent sums.
    ///
    /// # Safety
    /// As [`Dot::dot1`].
    #[inline(always)]
    unsafe fn dot4<const KIND: usize, const CHAINS: usize>(
        sums: &mut [Self::Sum; CHAINS],
        w: [Self::V; 4],
        x: Self::X,
    ) {
        // SAFETY: the caller's promise is that of each call: the instructions, and activations that are still
        // there.
        unsafe {
            sums[0] = Self::dot1::<KIND, 0>(sums[0], w[0], x);
            sums[1 % CHAINS] = Self::dot1::<KIND, 1>(sums[1 % CHAINS], w[1], x);
            sums[2 % CHAINS] = Self::dot1::<KIND, 2>(sums[2 % CHAINS], w[2], x);
            sums[3 % CHAINS] = Self::dot1::<KIND, 3>(sums[3 % CHAINS], w[3], x);
        }
    }
}

/// Whether vectors of weights and of sums cover a quad as `PARTS` says, for an assertion beside each implementation.
pub(crate) const fn fits<D: Dot>() -> bool {
    size_of::<D::V>() * D::PARTS == 64 && size_of::<D::F>() * D::PARTS == 64
}

/// Writes methods of a [`Dot`] implementation whose contract is that of the trait.
macro_rules! dot_ops {
    ($($name:ident$(<$($generic:ident),*>)?($($arg:ident: $ty:ty),*) $(-> $ret:ty)? = $body:expr;)*) => {$(
        #[inline(always)]
        #[allow(unused_unsafe)] // some bodies are plain expressions
        unsafe fn $name$(<$(const $generic: usize),*>)?($($arg: $ty),*) $(-> $ret)? {
            // SAFETY: the caller keeps the contract of the method in the trait: the instructions exist,
            // pointers are valid for the bytes named there, and the body touches no more of them.
            unsafe { $body }
        }
    )*};
}
use dot_ops;
