//! The engine: a planned model with its cache, and steps on it.

mod crew;
mod facts;
mod inner;
mod memory;
mod room;
mod saved;
mod sequence;
mod step;
#[cfg(test)]
mod tests;
mod timed;
mod trace;
mod warm;
mod write;

use std::sync::{Arc, Mutex};
use std::thread::{self, Builder};
use std::time::Duration;

use pocketlm_kernels::{Kernels, KvType, Level};

pub use memory::{Memory, machine_memory};
pub use sequence::Sequence;
pub use step::{Details, Logits, StepItem, StepResult};
pub use timed::PhaseInfo;
pub use trace::Traced;
pub use write::{WriteItem, WriteLimits, Written};

use crew::CrewSize;
use facts::{Facts, bytes_per_token, choose_kernels, id_limit};
use inner::Inner;

use crate::arena::Arena;
use crate::error::EngineError;
use crate::graph::Graph;
use crate::kv::{KV_TOKENS, KvCache, SequenceId};
use crate::plan::{Matrix, Options, Plan};
use crate::pool::{is_fixed, read_bandwidth_of, thread_count};
use crate::run::{Schedule, SharedPartials, Shares, Worker};
use crate::speculate::Costs;
use crate::store::WeightStore;

/// Steps of more rows would gain nothing and only take memory.
const MAX_ROWS: usize = 1 << 16;

/// How to make an engine.
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// Threads of a step; `None` for `POCKETLM_THREADS`, or else as many of the machine's cores as serve each kind of step best.
    pub threads: Option<usize>,
    /// Tokens that the cache holds over all sequences, rounded up to blocks of 64.
    pub cache_tokens: usize,
    /// Tokens of a step at most.
    pub max_rows: usize,
    /// Activations stay f32 with palettized weights too.
    pub precise: bool,
    /// How the cache stores keys and values.
    pub kv: KvType,
    /// Bytes that weights, cache and scratch may take together.
    pub max_memory: Option<u64>,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            threads: None,
            cache_tokens: 4096,
            max_rows: default_rows(),
            precise: false,
            kv: KvType::F16,
            max_memory: None,
        }
    }
}

/// Rows that share the reading and decoding of weights in a step: more would hardly be faster, and the memory of a step's activations
/// grows with them. Two Zen 3 cores, llama-3.2-1b at 4 bits, 512 and 2,048 tokens of prompt, tokens/s: 64 rows 169 and 150, 128
/// 174 and 153, 256 173 and 153, with 5 MB more in use. With AMX, where arithmetic takes less beside the same reading, it was not compared.
pub fn default_rows() -> usize {
    match Kernels::best().map(|kernels| kernels.level()) {
        Ok(Level::Avx512Amx) => 256,
        _ => 128,
    }
}

/// A model ready to run. Cloning shares it; it may be used from any thread, one step at a time.
#[derive(Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

/// What a step changes.
struct State {
    plan: Plan,
    arena: Arena,
    cache: KvCache,
    schedule: Schedule,
    partials: SharedPartials,
    shares: Shares,
    workers: Vec<Mutex<Worker>>,
    wanted: Vec<(SequenceId, usize)>,
    crew: CrewSize,
    /// Times of steps, from which follows what guesses cost.
    costs: Costs,
}

impl Engine {
    /// Plans the graph over the weights and reserves all memory of its steps.
    ///
    /// # Errors
    /// When the graph or a weight does not fit, a parameter is out of its range, or memory would exceed the limit; nothing
    /// large has been allocated then, but for the transposes of dense weights that are stored as [inputs, outputs].
    pub fn new(graph: Graph, store: Arc<WeightStore>, options: &EngineOptions) -> Result<Self, EngineError> {
        let kernels = Kernels::best().map_err(|error| EngineError::Unsupported(error.to_string()))?;
        let threads = thread_count(options.threads)?;
        if !(1..=MAX_ROWS).contains(&options.max_rows) {
            return Err(EngineError::parameter("max_rows", format!("must be from 1 to {MAX_ROWS}")));
        }
        if options.cache_tokens == 0 {
            return Err(EngineError::parameter("cache_tokens", "must be positive"));
        }
        let planning = Options {
            max_rows: options.max_rows,
            precise: options.precise,
            trace: false,
            packs_rows: kernels.packs_rows(),
        };
        let plan = thread::scope(|scope| {
            // On a thread of its own, since those of the pool may be busy with another model.
            let choose = || choose_kernels(kernels, &store);
            let beside = Builder::new().name("pocketlm-choose".into());
            let chosen = if threads > 1 { beside.spawn_scoped(scope, choose).ok() } else { None };
            let plan = Plan::new(&graph, &store, planning);
            match chosen {
                // Should it have failed, a step measures what it needs.
                Some(thread) => drop(thread.join()),
                None => choose(),
            }
            plan
        })?;
        let tokens = options.cache_tokens.min(graph.context_length);
        let memory = Memory::of(&plan, options.kv, options.cache_tokens, tokens, threads)?;
        memory.check("the model", options.max_memory)?;
        let facts = Facts {
            kernels,
            threads,
            max_rows: options.max_rows,
            precise: options.precise,
            kv: options.kv,
            max_memory: options.max_memory,
            cache_tokens: options.cache_tokens.next_multiple_of(KV_TOKENS),
            id_limit: id_limit(&graph),
            weight_bytes_per_token: bytes_per_token(&graph, &plan),
            memory,
            graph,
            store,
        };
        let crew = CrewSize::new(threads, is_fixed(options.threads));
        let state = State::new(plan, options.kv, options.cache_tokens, tokens, threads, crew)?;
        Ok(Self { inner: Arc::new(Inner::new(state, facts)) })
    }

    /// Threads of a step at most.
    pub fn threads(&self) -> usize {
        self.inner.facts.threads
    }

    /// Threads that a step of so many rows runs on at present: a number that is found by trying, unless one was asked for.
    ///
    /// # Errors
    /// When the engine is closed.
    pub fn step_threads(&self, rows: usize) -> Result<usize, EngineError> {
        Ok(self.inner.lock()?.state()?.crew.of(rows))
    }

    /// Stays with the present numbers of threads, so that steps can be compared, or goes on trying others.
    ///
    /// # Errors
    /// When the engine is closed.
    pub fn hold_threads(&self, held: bool) -> Result<(), EngineError> {
        self.inner.lock()?.state()?.crew.hold(held);
        Ok(())
    }

    /// Name of the instruction set in use.
    pub fn isa(&self) -> &'static str {
        self.inner.facts.kernels.level().name()
    }

    /// Number of logits.
    pub fn vocab_size(&self) -> usize {
        self.inner.facts.graph.vocab_size
    }

    /// How the cache stores keys and values.
    pub fn kv_type(&self) -> KvType {
        self.inner.facts.kv
    }

    /// Positions that the model was made for.
    pub fn context_length(&self) -> usize {
        self.inner.facts.graph.context_length
    }

    /// Tokens of a step at most.
    pub fn max_rows(&self) -> usize {
        self.inner.facts.max_rows
    }

    /// Tokens that the cache holds.
    pub fn cache_tokens(&self) -> usize {
        self.inner.facts.cache_tokens
    }

    /// Tokens that fit into free blocks of the cache.
    ///
    /// # Errors
    /// When the engine is closed.
    pub fn cache_tokens_free(&self) -> Result<usize, EngineError> {
        Ok(self.inner.lock()?.state()?.cache.free_tokens())
    }

    /// Bytes of weights that decoding one token reads.
    pub fn weight_bytes_per_token(&self) -> u64 {
        self.inner.facts.weight_bytes_per_token
    }

    /// Bytes per second that the engine's threads read from its matrices where these lie, again and again for about `time`; the
    /// best pass counts. It holds steps up meanwhile. What fits into a cache is read from there.
    ///
    /// # Errors
    /// When the engine is closed.
    pub fn read_bandwidth(&self, time: Duration) -> Result<f64, EngineError> {
        let mut inner = self.inner.lock()?;
        let matrices = &inner.state()?.plan.weights.matrices;
        let buffers: Vec<&[u8]> = matrices.iter().map(Matrix::main_bytes).collect();
        read_bandwidth_of(&buffers, self.threads(), time)
    }

    /// Bytes in use and reserved.
    pub fn memory(&self) -> Memory {
        self.inner.facts.memory
    }

    /// A new, empty sequence.
    ///
    /// # Errors
    /// When the engine is closed.
    pub fn sequence(&self) -> Result<Sequence, EngineError> {
        let id = self.inner.lock()?.state()?.cache.create();
        Ok(Sequence::new(Arc::clone(&self.inner), id, 0))
    }

    /// Gives all memory back. Later calls fail.
    ///
    /// # Errors
    /// When the engine is unusable.
    pub fn close(&self) -> Result<(), EngineError> {
        self.inner.lock()?.close();
        Ok(())
    }
}

impl State {
    /// Reserves the memory of a plan's steps, for sequences of up to `tokens` tokens.
    fn new(
        plan: Plan,
        kv: KvType,
        cache_tokens: usize,
        tokens: usize,
        threads: usize,
        crew: CrewSize,
    ) -> Result<Self, EngineError> {
        let schedule = Schedule::new(&plan);
        let worker = |_| Worker::new(&plan, tokens).map(Mutex::new);
        let workers: Result<_, _> = (0..threads).map(worker).collect();
        let workers = workers.map_err(|_| EngineError::Memory {
            what: "products with packed rows".into(),
            needed: Worker::bytes(&plan, tokens).unwrap_or(u64::MAX).saturating_mul(threads as u64),
            available: 0,
        })?;
        Ok(Self {
            arena: Arena::new(plan.arena_bytes)?,
            cache: KvCache::new(&plan.caches, kv, cache_tokens, tokens)?,
            partials: SharedPartials::new(schedule.limits),
            shares: Shares::new(threads),
            schedule,
            workers,
            wanted: Vec::with_capacity(plan.max_rows),
            crew,
            costs: Costs::default(),
            plan,
        })
    }
}
