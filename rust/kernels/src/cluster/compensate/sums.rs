//! Sums over inputs that the steps share, and keep up to date.
//!
//! Rows of H summed over the inputs that have the same code make everything cheap: with Y[a] = Σ_{k: code(k) = a} H[k, :] and
//! entries c, ŵ H = s Σ_a c[a] Y[a], and the codebook's least squares needs no more than sums over Y. When a code changes,
//! two of the rows change by one row of H.

use super::{Hessian, Tile};
use crate::error::KernelError;
use crate::formats::TILE;
use crate::kernels::Kernels;
use crate::ops::Outer;

/// Rows and columns of H that are worked on at once: as many as the second-level cache holds, widened to float64.
const CHUNK_ROWS: usize = 64;
const CHUNK_COLS: usize = 512;
/// Columns of all the sums of a tile that the cache holds.
const GATHER_COLS: usize = 256;

/// Sums of a tile; scratch that grows to the largest tile seen.
#[derive(Debug)]
pub(super) struct Sums {
    pub components: usize,
    cols: usize,
    /// W H, `[rows, cols]`.
    pub products: Vec<f64>,
    /// w H wᵀ of each row.
    pub energy: [f64; TILE],
    /// (Ŵ - W) H, `[rows, cols]`.
    pub residual: Vec<f64>,
    /// Y, `[rows, components, cols]`.
    pub by_code: Vec<f64>,
    /// What the sweep aims at.
    pub targets: Vec<f64>,
    wide: Vec<f64>,
    turned: Vec<f64>,
}

impl Sums {
    pub fn new(components: usize) -> Self {
        Self {
            components,
            cols: 0,
            products: Vec::new(),
            energy: [0.0; TILE],
            residual: Vec::new(),
            by_code: Vec::new(),
            targets: Vec::new(),
            wide: Vec::new(),
            turned: Vec::new(),
        }
    }

    /// Takes up a tile: W H and the rows' energies.
    pub fn begin(
        &mut self,
        kernels: &Kernels,
        weights: &[f32],
        rows: usize,
        cols: usize,
        hessian: &Hessian<'_>,
    ) -> Result<(), KernelError> {
        self.cols = cols;
        self.residual.resize(rows * cols, 0.0);
        self.targets.resize(rows * cols, 0.0);
        let mut products = std::mem::take(&mut self.products);
        let weight = |row: usize, col: usize| f64::from(weights[row * cols + col]);
        self.multiply(kernels, rows, hessian, weight, &mut products)?;
        self.products = products;
        for row in 0..rows {
            let products = &self.products[row * cols..(row + 1) * cols];
            self.energy[row] = products.iter().enumerate().map(|(col, x)| x * weight(row, col)).sum();
        }
        Ok(())
    }

    /// `out[row, :] = Σ_k x(row, k) H[k, :]`.
    pub fn multiply(
        &mut self,
        kernels: &Kernels,
        rows: usize,
        hessian: &Hessian<'_>,
        x: impl Fn(usize, usize) -> f64,
        out: &mut Vec<f64>,
    ) -> Result<(), KernelError> {
        let cols = hessian.pivots.len();
        out.clear();
        out.resize(rows * cols, 0.0);
        self.turned.clear();
        self.turned
            .extend((0..cols).flat_map(|col| (0..rows).map(move |row| (row, col))).map(|(r, c)| x(r, c)));
        for left in (0..cols).step_by(CHUNK_COLS) {
            let width = CHUNK_COLS.min(cols - left);
            for first in (0..cols).step_by(CHUNK_ROWS) {
                let terms = CHUNK_ROWS.min(cols - first);
                self.wide.clear();
                for k in first..first + terms {
                    self.wide.extend(hessian.row(k)[left..left + width].iter().map(|&h| f64::from(h)));
                }
                let factors = Outer {
                    a: &self.turned[first * rows..(first + terms) * rows],
                    a_stride: rows,
                    b: &self.wide,
                    b_stride: width,
                    terms,
                    rows,
                    cols: width,
                };
                kernels.outer_f64(&factors, &mut out[left..], cols)?;
            }
        }
        Ok(())
    }

    /// Y from the codes.
    pub fn gather(
        &mut self,
        kernels: &Kernels,
        tile: &Tile<'_>,
        hessian: &Hessian<'_>,
    ) -> Result<(), KernelError> {
        let (cols, components) = (self.cols, self.components);
        self.by_code.clear();
        self.by_code.resize(tile.rows * components * cols, 0.0);
        for left in (0..cols).step_by(GATHER_COLS) {
            let width = GATHER_COLS.min(cols - left);
            for first in (0..cols).step_by(CHUNK_ROWS) {
                for row in 0..tile.rows {
                    for k in first..(first + CHUNK_ROWS).min(cols) {
                        let at = (row * components + tile.component(row, k)) * cols + left;
                        let sum = &mut self.by_code[at..at + width];
                        kernels.add_scaled(sum, 1.0, &hessian.row(k)[left..left + width])?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Y of one row and component.
    pub fn of(&self, row: usize, component: usize) -> &[f64] {
        let at = (row * self.components + component) * self.cols;
        &self.by_code[at..at + self.cols]
    }

    /// (Ŵ - W) H from Y.
    pub fn residuals(&mut self, tile: &Tile<'_>) {
        let cols = self.cols;
        for row in 0..tile.rows {
            let residual = &mut self.residual[row * cols..(row + 1) * cols];
            for (residual, product) in residual.iter_mut().zip(&self.products[row * cols..]) {
                *residual = -product;
            }
            for (component, &entry) in tile.codebook.iter().enumerate() {
                let factor = tile.scale[row] * f64::from(entry);
                let at = (row * self.components + component) * cols;
                for (residual, y) in residual.iter_mut().zip(&self.by_code[at..at + cols]) {
                    *residual += factor * y;
                }
            }
        }
    }

    /// The code of (`row`, `col`) becomes `new`, its value changes by `step`.
    pub fn change(
        &mut self,
        kernels: &Kernels,
        row: usize,
        h: &[f32],
        (old, new): (usize, usize),
        step: f64,
    ) -> Result<(), KernelError> {
        let cols = self.cols;
        kernels.add_scaled(&mut self.residual[row * cols..(row + 1) * cols], step, h)?;
        for (component, factor) in [(old, -1.0), (new, 1.0)] {
            let at = (row * self.components + component) * cols;
            kernels.add_scaled(&mut self.by_code[at..at + cols], factor, h)?;
        }
        Ok(())
    }
}
