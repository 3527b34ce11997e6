//! Small fixed pieces of work, for whoever counts their instructions (`benches/instructions.py`): one row and four rows
//! times one tile of every kind, as many rows as a prompt has times a panel, one row and four times 16 outputs of 16-bit weights, and
//! one whole step of a tiny model for each kind of cache, on one thread, at the level of `POCKETLM_ISA`.
//!
//! Prints `level NAME`, the address of the function that every piece runs in as `counted ADDRESS`, and before each piece
//! `work LINES NAME`, where LINES are the 64-byte lines of codes or weights that it reads (0 for a step). With `--levels` it prints
//! the levels of this machine instead. With `--foreign LEVEL` it does the products of a level that this machine lacks, for a
//! counter that passes over what the processor refuses; without one the first such instruction ends the program.

use std::error::Error;
use std::sync::Arc;

use pocketlm_engine::store::Kind;
use pocketlm_engine::{Engine, EngineOptions, KvType, Logits, Sampler, SamplingParams, StepItem};
use pocketlm_kernels::registry::{KernelFn, Op, find};
use pocketlm_kernels::{Dense, DenseType, Level, Palette, QuantBuffer, Scratch, TILE, level};
use random_model::{Shape, model};

mod random_model;

/// Variants of a product, with rows and tiles that each is for, and two widths: the difference between them is
/// that of the inner loop alone. Under emulation each instruction is a line of a trace, so that the
/// largest piece is one block of rows of every level.
const PRODUCTS: [(&str, usize, usize, [usize; 2]); 3] =
    [("1", 1, 1, [512, 1024]), ("2-16", 4, 1, [512, 1024]), ("many", 12, 4, [256, 512])];
/// The same of products with 16-bit weights.
const DENSE: [(&str, usize); 2] = [("1", 1), ("many", 4)];
const DENSE_WIDTHS: [usize; 2] = [512, 1024];
/// Tokens in the cache before the step that is counted: more than one block, the last one part filled.
const CONTEXT: usize = 100;

/// The piece of work. Its call and its return are what the counter looks for, so it is never inlined.
#[inline(never)]
fn counted(work: &mut dyn FnMut()) {
    work();
}

fn product(
    kind: Kind,
    variant: &str,
    (rows, tiles): (usize, usize),
    cols: usize,
    level: Level,
) -> Result<(), Box<dyn Error>> {
    let outputs = tiles * TILE;
    let row = find(Op::MatmulPalette, kind.name(), variant, level).ok_or("the registry has a gap")?;
    let KernelFn::MatmulPalette(kernel) = row.func else { return Err("not a product".into()) };
    let codes = vec![0u8; kind.code_bytes(outputs, cols)?];
    let (codebook, scale) = (vec![1i8; tiles * kind.codebook_len()], vec![0x2c00u16; outputs]);
    let weights = Palette::new(kind, outputs, cols, &codes, &codebook, &scale)?;
    let mut buffer = QuantBuffer::new(rows, cols)?;
    let mut view = buffer.as_rows_mut();
    for i in 0..rows {
        view.row_mut(i).ok_or("no such row")?.values.fill(1);
    }
    let (acts, mut scratch, mut out) = (buffer.as_rows(), Scratch::new(), vec![0f32; rows * outputs]);
    println!("work {} {} rows={rows} cols={cols}", codes.len() / 64, kind.name());
    // SAFETY: the kernel is of the weight's kind, and all lengths follow from the shapes above. The level is that of this process,
    // so available; or else the caller wants to see its instructions refused.
    counted(&mut || unsafe { kernel(&weights, &acts, 0..tiles, &mut scratch, &mut out) });
    Ok(())
}

fn dense(
    dtype: DenseType,
    variant: &str,
    rows: usize,
    cols: usize,
    level: Level,
) -> Result<(), Box<dyn Error>> {
    let row = find(Op::MatmulDense, dtype.name(), variant, level).ok_or("the registry has a gap")?;
    let KernelFn::MatmulDense(kernel) = row.func else { return Err("not a product".into()) };
    let bytes = vec![0u8; TILE * cols * dtype.size()];
    let weights = Dense::new(dtype, TILE, cols, &bytes)?;
    let (x, mut out) = (vec![1f32; rows * cols], vec![0f32; rows * TILE]);
    println!("work {} {} rows={rows} cols={cols}", bytes.len() / 64, dtype.name());
    // SAFETY: the kernel is of the weight's type, and all lengths follow from the shapes above; of the level as above.
    counted(&mut || unsafe { kernel(&weights, &x, rows, cols, 0..TILE, &mut out) });
    Ok(())
}

/// A step that decodes. No step of a prompt is counted: which kernel it runs is measured on each machine.
fn step(kv: KvType, about: &str) -> Result<(), Box<dyn Error>> {
    let (graph, store) = model(&Shape {
        width: 256,
        heads: 2,
        kv_heads: 1,
        head_dim: 64,
        ffn: 256,
        vocab: 256,
        layers: 1,
        linear: Kind::P4,
        embed: Kind::P4,
    })?;
    let options =
        EngineOptions { threads: Some(1), cache_tokens: 128, max_rows: 32, kv, ..Default::default() };
    let engine = Engine::new(graph, Arc::new(store), &options)?;
    let sequence = engine.sequence()?;
    let prompt: Vec<u32> = (0..CONTEXT as u32).collect();
    for chunk in prompt.chunks(engine.max_rows()) {
        engine.step(&mut [StepItem::new(&sequence, chunk, None, Logits::None)])?;
    }
    let mut sampler = Sampler::new(SamplingParams { temperature: 0.0, ..Default::default() }, &[])?;
    let mut one =
        |token: u32| engine.step(&mut [StepItem::new(&sequence, &[token], Some(&mut sampler), Logits::None)]);
    one(7)?; // what a first step allocates is there afterwards
    let mut result = Ok(());
    println!("work 0 decode step{about}");
    counted(&mut || result = one(8));
    Ok(result?)
}

fn main() -> Result<(), Box<dyn Error>> {
    if std::env::args().any(|argument| argument == "--levels") {
        Level::available().iter().for_each(|level| println!("{level}"));
        return Ok(());
    }
    let foreign = std::env::args().skip_while(|argument| argument != "--foreign").nth(1);
    let level = match &foreign {
        Some(name) => Level::from_name(name).ok_or("--foreign needs the name of a level")?,
        None => level()?,
    };
    println!("level {level}");
    println!("counted {:#x}", counted as *const () as usize);
    for kind in Kind::ALL {
        for (variant, rows, tiles, widths) in PRODUCTS {
            for cols in widths {
                product(kind, variant, (rows, tiles), cols, level)?;
            }
        }
    }
    for dtype in [DenseType::Bf16, DenseType::F16] {
        for (variant, rows) in DENSE {
            for cols in DENSE_WIDTHS {
                dense(dtype, variant, rows, cols, level)?;
            }
        }
    }
    if foreign.is_some() {
        return Ok(());
    }
    step(KvType::F16, "")?;
    step(KvType::I8, ", int8 cache")
}
