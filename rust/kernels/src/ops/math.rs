//! Transcendental functions as polynomials, the same bits on every level.
//!
//! Coefficients were fitted here (weighted least squares iterated towards equal ripple, in float64); the errors named are those of
//! the polynomials, before rounding.

use crate::simd::Simd;

#[inline(always)]
fn horner<S: Simd, const N: usize>(s: S, x: S::F, coefficients: [f32; N]) -> S::F {
    let mut sum = s.splat(coefficients[N - 1]);
    let mut i = N - 1;
    while i > 0 {
        i -= 1;
        sum = s.fma(sum, x, s.splat(coefficients[i]));
    }
    sum
}

/// `e^x`: relative error 3e-9 before rounding, at most 1.5 units in the last place after it. Exact at 0; overflow gives
/// infinity, underflow is gradual; `-inf` gives 0; NaN stays.
#[inline(always)]
pub(crate) fn exp<S: Simd>(s: S, x: S::F) -> S::F {
    // NaN passes both comparisons as the second operand.
    let x = s.min(s.splat(89.0), s.max(s.splat(-104.0), x));
    let n = s.round(s.mul(x, s.splat(std::f32::consts::LOG2_E)));
    // ln 2 in two parts: the first product is exact inside the fused operation.
    let r = s.fma(n, s.splat(-std::f32::consts::LN_2), x);
    let r = s.fma(n, s.splat(1.904_654_3e-9), r);
    let p = horner(s, r, [0.499_999_94, 0.166_665_2, 0.041_668_393, 0.008_368_781, 0.001_381_446_7]);
    let e = s.add(s.fma(p, s.mul(r, r), r), s.splat(1.0));
    // 2^n as two factors, since n reaches from -150 to 128.
    let n = s.to_i32(n);
    let half = s.isar1(n);
    s.mul(s.mul(e, power_of_two(s, half)), power_of_two(s, s.isub(n, half)))
}

/// `2^n` for n in [-126, 127].
#[inline(always)]
fn power_of_two<S: Simd>(s: S, n: S::I) -> S::F {
    s.with_bits(s.ishl23(s.iadd(n, s.isplat(127))))
}

/// `-x`, exactly.
#[inline(always)]
pub(crate) fn neg<S: Simd>(s: S, x: S::F) -> S::F {
    // The top bit of an integer sum flips without carry.
    s.with_bits(s.iadd(s.bits(x), s.isplat(i32::MIN)))
}

/// `tanh x`: an odd polynomial up to 0.625 (relative error 6e-9 before rounding), `1 - 2 / (e^2|x| + 1)` beyond.
#[inline(always)]
pub(crate) fn tanh<S: Simd>(s: S, x: S::F) -> S::F {
    let a = s.abs(x);
    let e = exp(s, s.add(a, a));
    let one = s.splat(1.0);
    let large = s.sub(one, s.div(s.splat(2.0), s.add(e, one)));
    // The sign of x onto a value that has none: the integer sum of a clear and a set top bit.
    let sign = s.isub(s.bits(x), s.magnitude(x));
    let large = s.with_bits(s.iadd(s.bits(large), sign));
    let square = s.mul(x, x);
    let p = horner(s, square, [-0.333_332_7, 0.133_310_93, -0.053_709_656, 0.020_538_82, -0.005_591_017]);
    let small = s.fma(s.mul(p, square), x, x);
    s.select(s.gt(a, s.splat(0.625)), large, small)
}

/// `x / (1 + e^-x)`.
#[inline(always)]
pub(crate) fn silu<S: Simd>(s: S, x: S::F) -> S::F {
    s.div(x, s.add(s.splat(1.0), exp(s, neg(s, x))))
}

/// Gaussian error linear unit in the tanh form (arXiv 1606.08415): `x / (1 + e^-2u)`, u = √(2/π) (x + 0.044715 x³).
#[inline(always)]
pub(crate) fn gelu_tanh<S: Simd>(s: S, x: S::F) -> S::F {
    let inner = s.fma(s.mul(x, x), s.splat(-2.0 * 0.797_884_6 * 0.044_715), s.splat(-2.0 * 0.797_884_6));
    s.div(x, s.add(s.splat(1.0), exp(s, s.mul(x, inner))))
}

/// Gaussian error linear unit: `x Φ(x)`, with the tail of the normal distribution as `e^(-x²/2) q(t)`, t = 1 / (1 + 0.35 |x| / √2)
/// (relative error of q 7e-9 before rounding).
#[inline(always)]
pub(crate) fn gelu<S: Simd>(s: S, x: S::F) -> S::F {
    let a = s.abs(x);
    let one = s.splat(1.0);
    let t = s.div(one, s.fma(a, s.splat(0.35 * std::f32::consts::FRAC_1_SQRT_2), one));
    let q = horner(
        s,
        t,
        [
            0.098_740_8,
            0.098_589_085,
            0.093_794_81,
            0.076_286_2,
            0.071_108_49,
            0.046_922_76,
            -0.017_799_668,
            0.093_586_974,
            -0.080_640_28,
            0.019_410_823,
        ],
    );
    // The square in two parts, since its rounding error is an error of the exponent.
    let square = s.mul(x, x);
    let rest = s.fma(x, x, neg(s, square));
    let e = exp(s, s.mul(square, s.splat(-0.5)));
    let e = s.fma(e, s.mul(rest, s.splat(-0.5)), e);
    let tail = s.mul(e, s.mul(q, t));
    // Beyond 14.5 the tail is below the smallest float; the product would be infinity times zero for infinite x.
    let tail = s.select(s.gt(a, s.splat(14.5)), s.zero(), tail);
    s.mul(x, s.select(s.gt(x, s.zero()), s.sub(one, tail), tail))
}

/// `e^x` of one number, by the same polynomial.
#[inline(always)]
pub(crate) fn exp_one<S: Simd>(s: S, x: f32) -> f32 {
    s.first(exp(s, s.splat(x)))
}
