//! Weighted k-means of sixteen centers in the plane.
//!
//! A point counts along each axis by a weight of its own, as two neighbouring weights of a matrix do whose inputs differ in
//! size. The squared error separates into axes, so the best center of given points is the weighted mean of each axis.
//! Lloyd's algorithm (IEEE Transactions on Information Theory 28/2, 1982), started as k-means++ does (Arthur and
//! Vassilvitskii, SODA 2007) but with random numbers from a fixed seed.

// Counted loops over axes and lanes: the same index names a place in several arrays.
#![allow(clippy::needless_range_loop)]

/// Centers of a codebook of pairs.
pub(super) const CENTERS: usize = 16;
/// Rounds of Lloyd's algorithm at most, and the relative gain below which they end.
const ROUNDS: usize = 24;
const LEAST_GAIN: f64 = 1e-3;
/// Points whose nearest centers are found together: one register of every processor.
const WIDTH: usize = 4;

/// Points and the weights of their axes: `values[axis][point]`, `weights[axis][point]`.
#[derive(Debug, Clone, Default)]
pub(super) struct Points {
    pub(super) values: [Vec<f32>; 2],
    pub(super) weights: [Vec<f32>; 2],
}

/// Centers: `[axis][center]`.
pub(super) type Centers = [[f32; CENTERS]; 2];

/// What the points of each center add up to, by axis: Σh and Σhv.
pub(super) type Sums = [[[f64; 2]; 2]; CENTERS];

impl Points {
    pub(super) fn len(&self) -> usize {
        self.values[0].len()
    }

    pub(super) fn clear(&mut self) {
        self.values.iter_mut().chain(&mut self.weights).for_each(Vec::clear);
    }

    pub(super) fn push(&mut self, values: [f32; 2], weights: [f32; 2]) {
        for axis in 0..2 {
            self.values[axis].push(values[axis]);
            self.weights[axis].push(weights[axis]);
        }
    }

    fn get(&self, point: usize) -> ([f32; 2], [f32; 2]) {
        ([0, 1].map(|axis| self.values[axis][point]), [0, 1].map(|axis| self.weights[axis][point]))
    }

    /// At most `most` of the points of `all`, one out of each of as many stretches of equal length.
    pub(super) fn sample(&mut self, all: &Points, most: usize, random: &mut Random) {
        self.clear();
        let (count, total) = (most.min(all.len()), all.len());
        for i in 0..count {
            let (start, end) = (i * total / count, (i + 1) * total / count);
            let (values, weights) = all.get(start + random.below(end - start));
            self.push(values, weights);
        }
    }

    /// Σ over axes of h(v - c)² of a point.
    fn error(&self, point: usize, center: [f32; 2]) -> f32 {
        let (v, h) = self.get(point);
        (0..2).map(|axis| h[axis] * (v[axis] - center[axis]) * (v[axis] - center[axis])).sum()
    }

    /// The nearest center of each point, the first among equals, into `codes`; returns the error of each point in `errors`.
    pub(super) fn assign(&self, centers: &Centers, codes: &mut Vec<u8>, errors: &mut Vec<f32>) {
        codes.clear();
        errors.clear();
        let part = |axis: usize, start: usize| {
            let end = self.len().min(start + WIDTH);
            let mut part = ([0f32; WIDTH], [0f32; WIDTH]);
            part.0[..end - start].copy_from_slice(&self.values[axis][start..end]);
            part.1[..end - start].copy_from_slice(&self.weights[axis][start..end]);
            part
        };
        for start in (0..self.len()).step_by(WIDTH) {
            let ((x, hx), (y, hy)) = (part(0, start), part(1, start));
            let (mut best, mut code) = ([f32::INFINITY; WIDTH], [0i32; WIDTH]);
            for c in 0..CENTERS {
                for lane in 0..WIDTH {
                    let (dx, dy) = (x[lane] - centers[0][c], y[lane] - centers[1][c]);
                    let error = hx[lane] * dx * dx + hy[lane] * dy * dy;
                    let less = error < best[lane];
                    best[lane] = if less { error } else { best[lane] };
                    code[lane] = if less { c as i32 } else { code[lane] };
                }
            }
            let count = WIDTH.min(self.len() - start);
            codes.extend(code[..count].iter().map(|&code| code as u8));
            errors.extend_from_slice(&best[..count]);
        }
    }

    /// Sums of the points of each center.
    pub(super) fn sums(&self, codes: &[u8]) -> Sums {
        let mut sums = [[[0.0; 2]; 2]; CENTERS];
        for (point, &code) in codes.iter().enumerate() {
            let (v, h) = self.get(point);
            for (axis, sum) in sums[usize::from(code) % CENTERS].iter_mut().enumerate() {
                let h = f64::from(h[axis]);
                *sum = [sum[0] + h, sum[1] + h * f64::from(v[axis])];
            }
        }
        sums
    }
}

/// Finds centers. Holds scratch, so keep one for each thread.
#[derive(Debug, Clone, Default)]
pub(super) struct KMeans {
    codes: Vec<u8>,
    errors: Vec<f32>,
}

impl KMeans {
    /// Moves centers until they hardly gain any more. Returns the points' error.
    pub(super) fn improve(&mut self, points: &Points, centers: &mut Centers) -> f64 {
        let mut before = f64::INFINITY;
        for _ in 0..ROUNDS {
            points.assign(centers, &mut self.codes, &mut self.errors);
            let error: f64 = self.errors.iter().map(|&e| f64::from(e)).sum();
            if error >= before * (1.0 - LEAST_GAIN) {
                return error;
            }
            before = error;
            for (c, sums) in points.sums(&self.codes).into_iter().enumerate() {
                let unused = sums.iter().all(|[h, _]| *h == 0.0);
                if unused && let Some(worst) = self.worst() {
                    // A center without points goes where most is to be gained.
                    self.errors[worst] = 0.0;
                    for axis in 0..2 {
                        centers[axis][c] = points.values[axis][worst];
                    }
                }
                for (axis, [h, hv]) in sums.into_iter().enumerate() {
                    if h > 0.0 {
                        centers[axis][c] = (hv / h) as f32;
                    }
                }
            }
        }
        points.assign(centers, &mut self.codes, &mut self.errors);
        self.errors.iter().map(|&e| f64::from(e)).sum()
    }

    /// The point with the largest error, if there is any.
    fn worst(&self) -> Option<usize> {
        let largest = |a: (usize, f32), b: (usize, f32)| if b.1 > a.1 { b } else { a };
        self.errors
            .iter()
            .copied()
            .enumerate()
            .reduce(largest)
            .filter(|found| found.1 > 0.0)
            .map(|found| found.0)
    }

    /// Centers among the points: each drawn with a probability in proportion to the error that the earlier ones leave.
    pub(super) fn start(&mut self, points: &Points, random: &mut Random) -> Centers {
        let mut centers = [[0.0; CENTERS]; 2];
        self.errors.clear();
        // The first as if the only other center was the origin.
        self.errors.extend((0..points.len()).map(|point| points.error(point, [0.0; 2])));
        for c in 0..CENTERS {
            let total: f64 = self.errors.iter().map(|&e| f64::from(e)).sum();
            let mut left = total * random.unit();
            let drawn = self.errors.iter().position(|&e| {
                left -= f64::from(e);
                left < 0.0
            });
            // All points coincide with centers: the others stay at the origin.
            let Some(point) = drawn else { break };
            let center = points.get(point).0;
            for axis in 0..2 {
                centers[axis][c] = center[axis];
            }
            for (point, error) in self.errors.iter_mut().enumerate() {
                *error = error.min(points.error(point, center));
            }
        }
        centers
    }
}

/// Random numbers that are the same every time (SplitMix64).
#[derive(Debug, Clone)]
pub(super) struct Random(pub(super) u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In [0, 1).
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// In 0..limit.
    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn points(of: &[(f32, f32, f32, f32)]) -> Points {
        let mut points = Points::default();
        of.iter().for_each(|&(x, y, hx, hy)| points.push([x, y], [hx, hy]));
        points
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn assignment_is_the_nearest_and_improvement_improves(
            of in prop::collection::vec((-9f32..9.0, -9f32..9.0, 0f32..2.0, 0f32..2.0), 1..120),
            seed: u64,
        ) {
            let points = points(&of);
            let mut means = KMeans::default();
            let mut centers = means.start(&points, &mut Random(seed));
            let (mut codes, mut errors) = (Vec::new(), Vec::new());
            points.assign(&centers, &mut codes, &mut errors);
            for (point, (&code, &error)) in codes.iter().zip(&errors).enumerate() {
                let all = (0..CENTERS).map(|c| points.error(point, [centers[0][c], centers[1][c]]));
                prop_assert_eq!(all.clone().nth(code.into()), Some(error));
                prop_assert_eq!(all.fold(f32::INFINITY, f32::min), error);
            }
            let before: f64 = errors.iter().map(|&e| f64::from(e)).sum();
            let after = means.improve(&points, &mut centers);
            prop_assert!(after <= before * (1.0 + 1e-6));
            // Sixteen centers are enough for sixteen points.
            prop_assert!(of.len() > CENTERS || after <= 1e-6 * (1.0 + before));
            // Nothing depends on what the scratch held.
            let mut again = KMeans::default().start(&points, &mut Random(seed));
            prop_assert_eq!(after, KMeans::default().improve(&points, &mut again));
            prop_assert_eq!(centers, again);
        }
    }

    #[test]
    fn separate_clusters_are_found() {
        let mut random = Random(7);
        let corners: Vec<[f32; 2]> =
            (0..16).map(|i| [(i % 4) as f32 * 10.0, (i / 4) as f32 * 10.0]).collect();
        let mut points = Points::default();
        for i in 0..1600 {
            let [x, y] = corners[i % 16];
            points.push([x + random.unit() as f32, y + random.unit() as f32], [1.0, 0.5]);
        }
        let mut means = KMeans::default();
        let error = (0..4).map(|_| {
            let mut centers = means.start(&points, &mut random);
            means.improve(&points, &mut centers)
        });
        // Each axis errs as numbers between 0 and 1 err about their mean.
        assert!(error.fold(f64::INFINITY, f64::min) < 1600.0 * 1.6 / 12.0);
    }
}
