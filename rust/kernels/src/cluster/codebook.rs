//! The best codebook of whole numbers for weighted points on a line, exactly.
//!
//! A codebook's entries are int8 levels of a small grid, so there are at most 128 of them to choose from. The border between
//! two neighbouring entries lies half-way, at a multiple of one half. Points are therefore counted in cells of width one
//! half: whatever the codebook, all points of a cell share their nearest entry, and two sums a cell (weight and first
//! moment) give the exact squared error of any choice, up to the points' own energy. A dynamic program over the levels then finds the optimum
//! *including* the rounding of the table to the grid, which clustering first and rounding afterwards does not.
//! The program is that of optimal one-dimensional clustering (Wang and Song, The R Journal 3/2, 2011; weighted: Grønlund
//! et al., arXiv 1701.07204) with centres restricted to a grid.

/// Most cells that a grid has: two for each of 128 levels.
pub(super) const MAX_CELLS: usize = 256;
const MAX_LEVELS: usize = MAX_CELLS / 2;
/// Most entries of a codebook.
pub const MAX_CODES: usize = 16;

/// The levels that codebook entries may take: `low ..= low + count - 1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grid {
    low: i32,
    count: usize,
}

impl Grid {
    /// The grid of the levels from `low` to `high`; none without levels or with more than 128.
    pub fn new(low: i8, high: i8) -> Option<Self> {
        let count = usize::try_from(i32::from(high) - i32::from(low) + 1).ok()?;
        (1..=MAX_LEVELS).contains(&count).then_some(Self { low: low.into(), count })
    }

    /// Smallest level.
    pub fn low(self) -> i32 {
        self.low
    }

    /// Largest level.
    pub fn high(self) -> i32 {
        self.low + self.count as i32 - 1
    }

    /// Cells of width one half, from the lowest level on.
    pub(super) fn cells(self) -> usize {
        2 * self.count
    }

    /// The cell of a value; values beyond the grid fall into the outermost cells. NaN falls into the first.
    #[inline(always)]
    pub(super) fn cell(self, value: f64) -> usize {
        // The conversion truncates and saturates, so that no value is out of range.
        let index = value * 2.0 - f64::from(2 * self.low);
        (index as i32).clamp(0, self.cells() as i32 - 1) as usize
    }
}

/// Weighted moments of the points of each cell: Σh and Σhv.
#[derive(Debug, Clone)]
pub struct Histogram {
    grid: Grid,
    /// Each point goes to one of several tables, so that additions to a busy cell do not wait for each other.
    tables: [[[f64; 2]; MAX_CELLS]; TABLES],
}

const TABLES: usize = 4;

impl Histogram {
    /// A histogram without points.
    pub fn new(grid: Grid) -> Self {
        Self { grid, tables: [[[0.0; 2]; MAX_CELLS]; TABLES] }
    }

    /// Adds points, each a value and its weight (finite, not negative).
    #[inline(always)]
    pub fn extend(&mut self, points: impl Iterator<Item = (f64, f64)>) {
        for (index, (value, h)) in points.enumerate() {
            let cell = &mut self.tables[index % TABLES][self.grid.cell(value)];
            *cell = [cell[0] + h, cell[1] + h * value];
        }
    }

    pub(super) fn clear(&mut self) {
        self.tables = [[[0.0; 2]; MAX_CELLS]; TABLES];
    }

    fn moments(&self) -> impl Iterator<Item = [f64; 2]> {
        (0..self.grid.cells()).map(|cell| {
            self.tables.iter().fold([0.0; 2], |sum, table| [sum[0] + table[cell][0], sum[1] + table[cell][1]])
        })
    }
}

/// Finds codebooks. Holds scratch of 160 kB, so keep one for each thread.
#[derive(Debug, Clone)]
pub struct Solver {
    /// Sums over all cells before the index.
    prefix: [[f64; 2]; MAX_CELLS + 1],
    /// `pair[a][b]`: error (less energy, here and below) of the points between neighbouring entries `a < b`.
    pair: Box<[[f64; MAX_LEVELS]; MAX_LEVELS]>,
    /// `best[j][b]`: least error of the points below level `b` where `b` is entry `j`.
    best: [[f64; MAX_LEVELS]; MAX_CODES],
}

impl Default for Solver {
    fn default() -> Self {
        Self {
            prefix: [[0.0; 2]; MAX_CELLS + 1],
            pair: Box::new([[0.0; MAX_LEVELS]; MAX_LEVELS]),
            best: [[0.0; MAX_LEVELS]; MAX_CODES],
        }
    }
}

impl Solver {
    /// The `codebook.len()` (1 to 16, at most the grid's levels) distinct levels, ascending, that minimise the weighted
    /// squared error of the histogram's points, each taken by its nearest level. Returns that error less the energy of
    /// the points, Σh(v - c)² - Σhv², which is what differs between codebooks.
    ///
    /// Among equals the lowest levels win. Without points the choice is arbitrary but fixed.
    pub fn solve(&mut self, histogram: &Histogram, codebook: &mut [i8]) -> f64 {
        let grid = histogram.grid;
        let (levels, codes) = (grid.count, codebook.len());
        assert!((1..=MAX_CODES.min(levels)).contains(&codes), "{codes} codes on a grid of {levels} levels");
        self.sum_up(histogram);
        for a in 0..levels {
            for b in a + 1..levels {
                // Level x sits at the lower border of cell 2x; the border between a and b is that of cell a + b.
                self.pair[a][b] = self.error(grid, a, 2 * a, a + b) + self.error(grid, b, a + b, 2 * b);
            }
            self.best[0][a] = self.error(grid, a, 0, 2 * a);
        }
        for j in 1..codes {
            let (done, rest) = self.best.split_at_mut(j);
            let (previous, next) = (&done[j - 1], &mut rest[0]);
            next[..levels].fill(f64::INFINITY);
            // Entry by entry, not a reduction, so that it becomes vector instructions.
            for a in j - 1..levels {
                for (least, pair) in next[a + 1..levels].iter_mut().zip(&self.pair[a][a + 1..levels]) {
                    let error = previous[a] + pair;
                    *least = if error < *least { error } else { *least };
                }
            }
        }
        self.trace_back(grid, codebook)
    }

    fn sum_up(&mut self, histogram: &Histogram) {
        let mut sums = [0.0; 2];
        for (cell, after) in histogram.moments().zip(&mut self.prefix[1..]) {
            sums = [sums[0] + cell[0], sums[1] + cell[1]];
            *after = sums;
        }
    }

    /// Error of the points in cells `from..to` if level number `level` stands for them, less their energy: Σh(c² - 2cv).
    #[inline(always)]
    fn error(&self, grid: Grid, level: usize, from: usize, to: usize) -> f64 {
        let center = f64::from(grid.low + level as i32);
        let (low, high) = (&self.prefix[from], &self.prefix[to]);
        center * (center * (high[0] - low[0]) - 2.0 * (high[1] - low[1]))
    }

    fn trace_back(&self, grid: Grid, codebook: &mut [i8]) -> f64 {
        let last = codebook.len() - 1;
        let totals =
            (last..grid.count).map(|b| self.best[last][b] + self.error(grid, b, 2 * b, grid.cells()));
        let (mut level, total) = least(totals).map_or((last, 0.0), |(index, total)| (index + last, total));
        for j in (0..=last).rev() {
            codebook[j] = (grid.low + level as i32) as i8;
            if j > 0 {
                let candidates = (0..level).map(|a| self.best[j - 1][a] + self.pair[a][level]);
                level = least(candidates).map_or(j - 1, |(index, _)| index);
            }
        }
        total
    }
}

/// Index and value of the first smallest item.
fn least(values: impl Iterator<Item = f64>) -> Option<(usize, f64)> {
    values.enumerate().reduce(|least, item| if item.1 < least.1 { item } else { least })
}

/// For each cell the code whose entry is nearest; `codebook` ascends.
pub(super) fn nearest_codes(grid: Grid, codebook: &[i8]) -> [u8; MAX_CELLS] {
    let mut table = [0; MAX_CELLS];
    let mut code = 0;
    for (cell, slot) in table[..grid.cells()].iter_mut().enumerate() {
        // In half units above the grid's start, the cell begins at `cell` and the border lies at the sum of the entries.
        let offset = |entry: i8| usize::try_from(i32::from(entry) - grid.low).unwrap_or(0);
        while code + 1 < codebook.len() && cell >= offset(codebook[code]) + offset(codebook[code + 1]) {
            code += 1;
        }
        *slot = code as u8;
    }
    table
}
