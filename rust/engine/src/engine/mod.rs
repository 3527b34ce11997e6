//! The engine: a planned model with its cache, and steps on it.

mod memory;
mod sequence;
mod step;
mod trace;

use std::process;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use pocketlm_kernels::Kernels;

pub use memory::Memory;
pub use sequence::Sequence;
pub use step::{Logits, StepItem, StepResult};
pub use trace::Traced;

use crate::arena::Arena;
use crate::error::EngineError;
use crate::graph::{Graph, OpKind};
use crate::kv::{KV_TOKENS, KvCache, SequenceId};
use crate::plan::{Options, Plan};
use crate::pool::thread_count;
use crate::run::{Schedule, SharedPartials, Worker};
use crate::store::WeightStore;

/// Steps of more rows would gain nothing and only take memory.
const MAX_ROWS: usize = 1 << 16;

/// How to make an engine.
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// Threads of a step; `None` for `POCKETLM_THREADS` or the machine's cores.
    pub threads: Option<usize>,
    /// Tokens that the cache holds over all sequences, rounded up to blocks of 64.
    pub cache_tokens: usize,
    /// Tokens of a step at most.
    pub max_rows: usize,
    /// Activations stay f32 with palettized weights too.
    pub precise: bool,
    /// Bytes that weights, cache and scratch may take together.
    pub max_memory: Option<u64>,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self { threads: None, cache_tokens: 4096, max_rows: 512, precise: false, max_memory: None }
    }
}

/// A model ready to run. Cloning shares it; it may be used from any thread, one step at a time.
#[derive(Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

/// What the engine and its sequences share.
struct Inner {
    state: Mutex<Option<State>>,
    /// The process that holds `state`, 0 if none does.
    holder: AtomicU32,
    /// Sequences dropped while a step ran.
    dropped: Mutex<Vec<SequenceId>>,
    facts: Facts,
}

/// What does not change.
struct Facts {
    graph: Graph,
    store: Arc<WeightStore>,
    kernels: &'static Kernels,
    threads: usize,
    max_rows: usize,
    precise: bool,
    max_memory: Option<u64>,
    cache_tokens: usize,
    /// Ids from here on have no embedding.
    id_limit: usize,
    weight_bytes_per_token: u64,
    memory: Memory,
}

/// What a step changes.
struct State {
    plan: Plan,
    arena: Arena,
    cache: KvCache,
    schedule: Schedule,
    partials: SharedPartials,
    workers: Vec<Mutex<Worker>>,
    wanted: Vec<(SequenceId, usize)>,
}

impl Engine {
    /// Plans the graph over the weights and reserves all memory of its steps.
    ///
    /// # Errors
    /// When the graph or a weight does not fit, a parameter is out of its range, or memory would exceed the limit; nothing
    /// large has been allocated then.
    pub fn new(graph: Graph, store: Arc<WeightStore>, options: &EngineOptions) -> Result<Self, EngineError> {
        let kernels = Kernels::best().map_err(|error| EngineError::Unsupported(error.to_string()))?;
        let threads = thread_count(options.threads)?;
        if !(1..=MAX_ROWS).contains(&options.max_rows) {
            return Err(EngineError::parameter("max_rows", format!("must be from 1 to {MAX_ROWS}")));
        }
        if options.cache_tokens == 0 {
            return Err(EngineError::parameter("cache_tokens", "must be positive"));
        }
        let planning = Options { max_rows: options.max_rows, precise: options.precise, trace: false };
        let plan = Plan::new(&graph, &store, planning)?;
        let tokens = options.cache_tokens.min(graph.context_length);
        let memory = Memory::of(&plan, options.cache_tokens, tokens, threads)?;
        memory.check(options.max_memory)?;
        let graph_context = graph.context_length;
        let facts = Facts {
            kernels,
            threads,
            max_rows: options.max_rows,
            precise: options.precise,
            max_memory: options.max_memory,
            cache_tokens: options.cache_tokens.next_multiple_of(KV_TOKENS),
            id_limit: id_limit(&graph),
            weight_bytes_per_token: bytes_per_token(&graph, &plan),
            memory,
            graph,
            store,
        };
        let schedule = Schedule::new(&plan);
        let state = State {
            arena: Arena::new(plan.arena_bytes)?,
            cache: KvCache::new(&plan.caches, options.cache_tokens, graph_context)?,
            partials: SharedPartials::new(schedule.limits),
            schedule,
            workers: (0..threads).map(|_| Mutex::new(Worker::new(&plan, tokens))).collect(),
            wanted: Vec::with_capacity(options.max_rows),
            plan,
        };
        let inner = Inner {
            state: Mutex::new(Some(state)),
            holder: AtomicU32::new(0),
            dropped: Mutex::new(Vec::new()),
            facts,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Threads of a step.
    pub fn threads(&self) -> usize {
        self.inner.facts.threads
    }

    /// Name of the instruction set in use.
    pub fn isa(&self) -> &'static str {
        self.inner.facts.kernels.level().name()
    }

    /// Number of logits.
    pub fn vocab_size(&self) -> usize {
        self.inner.facts.graph.vocab_size
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
        *self.inner.lock()?.guard = None;
        Ok(())
    }
}

/// The state while this thread holds it.
struct Locked<'a> {
    guard: MutexGuard<'a, Option<State>>,
    holder: &'a AtomicU32,
}

impl Locked<'_> {
    fn state(&mut self) -> Result<&mut State, EngineError> {
        self.guard.as_mut().ok_or_else(|| EngineError::parameter("engine", "is closed"))
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        self.holder.store(0, Ordering::Release);
    }
}

impl Inner {
    /// Waits for the running step, if there is one.
    fn lock(&self) -> Result<Locked<'_>, EngineError> {
        let guard = match self.state.try_lock() {
            Ok(guard) => guard,
            Err(TryLockError::WouldBlock) => {
                // In a forked child the thread that holds the lock may not exist, so that waiting would never end.
                let holder = self.holder.load(Ordering::Acquire);
                if holder != 0 && holder != process::id() {
                    return Err(EngineError::Internal(
                        "the process was forked while a step ran in this engine".into(),
                    ));
                }
                self.state.lock().map_err(|_| broken())?
            }
            Err(TryLockError::Poisoned(_)) => return Err(broken()),
        };
        Ok(self.held(guard))
    }

    /// The state if no step runs.
    fn try_lock(&self) -> Option<Locked<'_>> {
        self.state.try_lock().ok().map(|guard| self.held(guard))
    }

    fn held<'a>(&'a self, guard: MutexGuard<'a, Option<State>>) -> Locked<'a> {
        self.holder.store(process::id(), Ordering::Release);
        let mut locked = Locked { guard, holder: &self.holder };
        if let Some(state) = locked.guard.as_mut() {
            for id in self.dropped.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
                state.cache.free(id);
            }
        }
        locked
    }
}

fn broken() -> EngineError {
    EngineError::Internal("an earlier failure left this engine unusable".into())
}

/// Rows of the smallest embedding table.
fn id_limit(graph: &Graph) -> usize {
    let rows = graph.ops.iter().filter_map(|op| match &op.kind {
        OpKind::Embed { weight, .. } => weight.shape.first().copied(),
        _ => None,
    });
    rows.min().unwrap_or(usize::MAX)
}

/// All matrices and vectors once, tables of which only a row is read for that row.
fn bytes_per_token(graph: &Graph, plan: &Plan) -> u64 {
    let mut whole = vec![false; plan.weights.matrices.len()];
    let of = |op: usize| plan.op_matrices[op];
    for (index, op) in graph.ops.iter().enumerate() {
        if let (OpKind::Linear { .. }, Some(matrix)) = (&op.kind, of(index)) {
            whole[matrix] = true;
        }
    }
    let matrices: u64 = plan
        .weights
        .matrices
        .iter()
        .zip(&whole)
        .map(|(matrix, &whole)| {
            (if whole { matrix.bytes() } else { matrix.bytes() / matrix.rows().max(1) }) as u64
        })
        .sum();
    matrices + plan.weights.vectors.iter().map(|vector| 4 * vector.len() as u64).sum::<u64>()
}
