//! The kernels of one level, behind safe methods.

use std::ops::Range;
use std::sync::OnceLock;

use crate::cpu::{self, Level};
use crate::error::{KernelError, expect_len, product};
use crate::formats::{Kind, Palette, TILE};
use crate::matmul::choice::{Prompts, fastest};
use crate::ops::FloatOps;
use crate::quantized::QuantRows;
use crate::registry::{EmbedPaletteFn, MatmulPaletteFn, pick};
use crate::scratch::Scratch;

/// Rows up to which weights are always decoded in registers.
const FEW_ROWS: usize = 8;
/// Rows up to which the kernel is chosen by its time for so many; beyond, by that for a prompt's.
const SOME_ROWS: usize = 16;
/// The rows of a prompt that is measured.
const PROMPT_ROWS: usize = 96;

/// The kernels of one level. Holding a reference is the proof that the machine can run them: [`Kernels::get`] gives
/// none for a level that was not detected.
#[derive(Debug)]
pub struct Kernels {
    level: Level,
    /// By kind, then variant.
    matmul_palette: [[MatmulPaletteFn; 3]; Kind::ALL.len()],
    /// For more than [`FEW_ROWS`] rows and for more than [`SOME_ROWS`]: the faster of two kernels, once it is known.
    prompts: [[OnceLock<Prompts>; 2]; Kind::ALL.len()],
    embed_palette: [EmbedPaletteFn; Kind::ALL.len()],
    pub(crate) float: FloatOps,
}

impl Kernels {
    /// The kernels of a level, or `None` when this machine cannot run it.
    pub fn get(level: Level) -> Option<&'static Kernels> {
        static TABLES: [OnceLock<Option<Kernels>>; Level::ALL.len()] =
            [const { OnceLock::new() }; Level::ALL.len()];
        let index = Level::ALL.iter().position(|&l| l == level)?;
        TABLES[index].get_or_init(|| level.is_available().then(|| Self::build(level)).flatten()).as_ref()
    }

    /// The kernels of the level in use: the best one of this machine, or the one that `POCKETLM_ISA` names.
    ///
    /// # Errors
    /// When `POCKETLM_ISA` names an unknown or unavailable level.
    pub fn best() -> Result<&'static Kernels, KernelError> {
        let level = cpu::level()?;
        Self::get(level)
            .ok_or(KernelError::Invalid { what: "level", reason: "its table of kernels has a gap" })
    }

    fn build(level: Level) -> Option<Kernels> {
        let matmul = |kind: Kind| {
            Some([
                pick!(level, MatmulPalette, kind.name(), "1"),
                pick!(level, MatmulPalette, kind.name(), "2-16"),
                pick!(level, MatmulPalette, kind.name(), "many"),
            ])
        };
        Some(Kernels {
            level,
            prompts: [const { [const { OnceLock::new() }; 2] }; Kind::ALL.len()],
            matmul_palette: by_kind(matmul)?,
            embed_palette: by_kind(|kind| Some(pick!(level, EmbedPalette, kind.name(), "row")))?,
            float: FloatOps::build(level)?,
        })
    }

    /// The kernel for so many rows, more than [`FEW_ROWS`], and how it holds weights: "panels" decodes them to memory, "registers" anew for
    /// every eight rows.
    pub(crate) fn prompts(&self, kind: Kind, rows: usize) -> Prompts {
        let [_, few, many] = self.matmul_palette[kind as usize];
        let (place, measured) = if rows > SOME_ROWS { (1, PROMPT_ROWS) } else { (0, SOME_ROWS) };
        // SAFETY: the level was detected before the table was built, and both are this kind's of the table.
        *self.prompts[kind as usize][place].get_or_init(|| unsafe { fastest(kind, measured, few, many) })
    }

    /// Whether many rows are multiplied faster with dense weights once they are packed ([`Kernels::matmul_packed`]): where
    /// registers hold too few sums for whole vectors of both factors (`docs/decisions/0009-no-bf16-dot-products.md`). NEON was not measured.
    pub fn packs_rows(&self) -> bool {
        matches!(self.level, Level::Avx2 | Level::Avx2Vnni)
    }

    /// How the kernel for so many rows of a kind holds decoded weights: `panels` in memory, or `registers`. Measured when first asked.
    pub fn prompt_kernel(&self, kind: Kind, rows: usize) -> &'static str {
        if rows > FEW_ROWS { self.prompts(kind, rows).name } else { "registers" }
    }

    /// The level.
    pub fn level(&self) -> Level {
        self.level
    }

    /// Palettized weights × int8 activations: `y[m, n] = scale[n] * Σ_blocks xscale[m, block] * Σ value[n, k] * q[m, k]`.
    ///
    /// Computes the outputs of `tiles` (16 each). `out` is row-major `[x.rows(), 16 * tiles.len()]`; outputs beyond
    /// the last row of the weight are ±0 (NaN where a scale of x is NaN). Integer sums are exact and the float order
    /// is fixed, so the result is the same, bit for bit, on every level and for any number of rows.
    ///
    /// # Errors
    /// When the inputs differ in number, `tiles` leaves the weight, or `out` has the wrong length.
    pub fn matmul_palette(
        &self,
        w: &Palette<'_>,
        x: &QuantRows<'_>,
        tiles: Range<usize>,
        scratch: &mut Scratch,
        out: &mut [f32],
    ) -> Result<(), KernelError> {
        check_tiles(w, &tiles)?;
        expect_len("columns of quantized rows", x.cols, w.cols)?;
        expect_len("out of matmul_palette", out.len(), product("out", &[x.rows, tiles.len(), TILE])?)?;
        let [one, few, _] = self.matmul_palette[w.kind as usize];
        let kernel = match x.rows {
            0 => return Ok(()),
            1 => one,
            2..=FEW_ROWS => few,
            rows => self.prompts(w.kind, rows).kernel,
        };
        // SAFETY: the level was detected before the table was built; the kernel is of the weight's kind, and
        // there are rows; tiles, inputs and the length of `out` were checked above.
        unsafe { kernel(w, x, tiles, scratch, out) };
        Ok(())
    }

    /// One row of a palettized table as float32.
    ///
    /// # Errors
    /// When the row is not in the table, or `out` does not have one element per column.
    pub fn embed_palette(&self, w: &Palette<'_>, row: usize, out: &mut [f32]) -> Result<(), KernelError> {
        if row >= w.rows {
            return Err(KernelError::Range { what: "row of the table", got: row, limit: w.rows });
        }
        expect_len("out of embed_palette", out.len(), w.cols)?;
        let kernel = self.embed_palette[w.kind as usize];
        // SAFETY: the level was detected before the table was built; the kernel is of the weight's kind; row
        // and length were checked above.
        unsafe { kernel(w, row, out) };
        Ok(())
    }
}

/// What `of` gives for each kind, by its number; none where one is missing.
pub(crate) fn by_kind<T: Copy>(of: impl Fn(Kind) -> Option<T>) -> Option<[T; Kind::ALL.len()]> {
    let found = Kind::ALL.map(of);
    let first = found[0]?;
    found.iter().all(Option::is_some).then(|| found.map(|one| one.unwrap_or(first)))
}

pub(crate) fn check_tiles(w: &Palette<'_>, tiles: &Range<usize>) -> Result<(), KernelError> {
    if tiles.start > tiles.end {
        return Err(KernelError::Invalid { what: "tiles", reason: "the range ends before it starts" });
    }
    if tiles.end > w.tiles() {
        return Err(KernelError::Range { what: "tiles", got: tiles.end, limit: w.tiles() });
    }
    Ok(())
}
