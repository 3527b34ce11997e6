//! One step on the workers: the phases of a plan, with a barrier after each, and within one of products behind the packing of rows.

mod attention;
mod clock;
mod linear;
mod output;
mod packing;
mod rows;
mod schedule;
mod shares;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use pocketlm_kernels::{KernelError, Kernels, Scratch};

pub(crate) use attention::SharedPartials;
pub(crate) use clock::Clock;
pub(crate) use output::{Output, Selected};
pub(crate) use schedule::{Limits, Schedule};
pub(crate) use shares::Shares;

use crate::arena::ArenaView;
use crate::engine::StepItem;
use crate::error::EngineError;
use crate::kv::{KvCache, KvView};
use crate::plan::{Domain, Phase, Plan, RowOp};
use crate::pool::{Stopped, Team, ThreadPool};

/// Row programs of at most this cost (about elements touched) are run by one thread while the others wait: spread over
/// threads they would need a barrier of their own, which costs as much.
const SERIAL_COST: usize = 16 * 1024;

/// Everything that the workers of a step share.
pub(crate) struct Step<'a, 'i> {
    pub plan: &'a Plan,
    pub kernels: &'static Kernels,
    pub arena: ArenaView<'a>,
    pub cache: &'a KvCache,
    pub kv: KvView<'a>,
    pub schedule: &'a Schedule,
    /// What goes in, and results.
    pub items: &'a [StepItem<'i>],
    pub workers: &'a [Mutex<Worker>],
    /// Partial attention of splits that different workers compute.
    pub partials: attention::Partials<'a>,
    /// The next unit of work of the phase; in one of products, of packing their rows.
    pub next: AtomicUsize,
    /// Work on products that is taken.
    pub shares: &'a Shares,
    /// Measures the phases, if asked to.
    pub clock: Option<&'a Clock>,
}

/// What a worker owns: lent memory for kernels, and rows on their way.
pub(crate) struct Worker {
    scratch: Scratch,
    /// Results of a product before its epilogue; two, for a gate and its partner.
    products: [Vec<f32>; 2],
    /// Partial attention of all splits of some rows, and their merged result.
    partial: Vec<f32>,
    merged: Vec<f32>,
    /// First positions that rows see.
    starts: Vec<u32>,
}

/// Rows that a phase works on in this pass.
#[derive(Clone, Copy)]
struct Pass {
    /// Counts the passes of a step.
    number: usize,
    domain: Domain,
    /// First of the selected rows, for the tail.
    first: usize,
    rows: usize,
}

impl Worker {
    /// Memory for the steps of a plan over sequences of up to `tokens` tokens.
    ///
    /// # Errors
    /// When there is no memory for products with packed rows.
    pub fn new(plan: &Plan, tokens: usize) -> Result<Self, KernelError> {
        let products = [(); 2].map(|()| vec![0.0; linear::product_len(plan)]);
        let mut scratch = Scratch::new();
        if let Some(packing) = plan.packing {
            scratch.reserve(packing.rows, packing.cols)?;
        }
        let (partial, merged, rows) = attention::worker_lens(plan, tokens);
        Ok(Self {
            scratch,
            products,
            partial: vec![0.0; partial],
            merged: vec![0.0; merged],
            starts: vec![0; rows],
        })
    }

    /// Bytes that [`Worker::new`] allocates.
    pub fn bytes(plan: &Plan, tokens: usize) -> Option<u64> {
        let (partial, merged, rows) = attention::worker_lens(plan, tokens);
        let floats =
            linear::product_len(plan).checked_mul(2)?.checked_add(partial)?.checked_add(merged + rows)?;
        let packed = plan.packing.map_or(Some(0), |packing| Scratch::floats(packing.rows, packing.cols));
        let floats = floats.checked_add(packed?)?;
        // The kernels' other memory is a little less than this.
        Some(floats.checked_mul(4)?.checked_add(128 << 10)? as u64)
    }
}

impl Step<'_, '_> {
    /// Runs the step on `threads` threads of the pool.
    pub fn run(&self, pool: &ThreadPool, threads: usize) -> Result<(), EngineError> {
        let threads = threads.min(self.workers.len());
        pool.run(threads, |team| {
            if let Err(Halt::Kernel(error)) = self.work(team) {
                // Others wait at a barrier that this thread will not reach; the panic releases them and becomes an error.
                panic!("a kernel refused its arguments: {error}");
            }
        })
    }

    fn work(&self, team: &Team<'_>) -> Result<(), Halt> {
        if let (0, Some(clock)) = (team.index(), self.clock) {
            clock.begin(0);
        }
        let mut worker = lock(&self.workers[team.index()]);
        let rows = self.schedule.positions.len();
        let selected = &self.schedule.selected;
        let body = Pass { number: 0, domain: Domain::All, first: 0, rows };
        if selected.is_empty() && !self.plan.tail.is_empty() {
            return self.walk(team, &mut worker, 0..self.plan.cache_done, body);
        }
        self.walk(team, &mut worker, self.plan.body.clone(), body)?;
        for (number, first) in (0..selected.len()).step_by(self.plan.tail_rows).enumerate() {
            let rows = (selected.len() - first).min(self.plan.tail_rows);
            let pass = Pass { number: number + 1, domain: Domain::Tail, first, rows };
            self.walk(team, &mut worker, self.plan.tail.clone(), pass)?;
        }
        Ok(())
    }

    /// Runs some phases. All workers take the same way through them: it depends on the step alone.
    fn walk(
        &self,
        team: &Team<'_>,
        worker: &mut Worker,
        range: std::ops::Range<usize>,
        pass: Pass,
    ) -> Result<(), Halt> {
        let mut at = range.start;
        // What is too little to share, the last thread to arrive at a barrier does while the others wait there.
        let mut waiting = false;
        while at < range.end {
            let phase = &self.plan.phases[at];
            let mut failed = Ok(());
            if self.is_serial(phase, pass) {
                if !waiting {
                    team.wait_then(|| {
                        failed = self.alone(phase, pass);
                        self.mark(team, pass, at);
                    })?;
                    failed?;
                }
                waiting = false;
                at += 1;
                continue;
            }
            match phase {
                Phase::Rows(ops) => self.shared_rows(ops, pass, team.size())?,
                Phase::Linear(parts) => self.linear(parts, pass, team, worker)?,
                Phase::Attention(part) => self.attention(part, worker)?,
                Phase::Output(logits) => {
                    while let Some(row) = self.claim(pass.rows) {
                        self.output(*logits, pass, row);
                    }
                }
            }
            at += 1;
            let following =
                self.plan.phases.get(at).filter(|next| at < range.end && self.is_serial(next, pass));
            waiting = following.is_some();
            self.mark(team, pass, at - 1);
            team.wait_then(|| {
                self.next.store(0, Ordering::Relaxed);
                if matches!(phase, Phase::Linear(_)) {
                    self.shares.reset();
                }
                if let Some(phase) = following {
                    failed = self.alone(phase, pass);
                    self.mark(team, pass, at);
                }
            })?;
            failed?;
        }
        Ok(())
    }

    fn is_serial(&self, phase: &Phase, pass: Pass) -> bool {
        match phase {
            Phase::Rows(ops) => {
                pass.rows == 1 || pass.rows * ops.iter().map(RowOp::cost).sum::<usize>() <= SERIAL_COST
            }
            Phase::Output(_) => pass.rows == 1,
            Phase::Linear(_) | Phase::Attention(_) => false,
        }
    }

    fn alone(&self, phase: &Phase, pass: Pass) -> Result<(), KernelError> {
        match phase {
            Phase::Rows(ops) => self.program(ops, pass, 0..pass.rows),
            Phase::Output(logits) => {
                (0..pass.rows).for_each(|row| self.output(*logits, pass, row));
                Ok(())
            }
            Phase::Linear(_) | Phase::Attention(_) => Ok(()),
        }
    }

    /// Notes that this thread is done with a phase.
    fn mark(&self, team: &Team<'_>, pass: Pass, phase: usize) {
        if let Some(clock) = self.clock {
            clock.mark(team.index(), pass.number, phase);
        }
    }

    /// The next of `count` units of the phase.
    fn claim(&self, count: usize) -> Option<usize> {
        let unit = self.next.fetch_add(1, Ordering::Relaxed);
        (unit < count).then_some(unit)
    }

    /// The row of the step that a row of a pass stands for.
    fn step_row(&self, pass: Pass, row: usize) -> usize {
        match pass.domain {
            Domain::All => row,
            Domain::Tail => self.schedule.selected[pass.first + row].row,
        }
    }
}

/// Why a worker leaves a step early.
enum Halt {
    Stopped,
    Kernel(KernelError),
}

impl From<Stopped> for Halt {
    fn from(Stopped: Stopped) -> Self {
        Self::Stopped
    }
}

impl From<KernelError> for Halt {
    fn from(error: KernelError) -> Self {
        Self::Kernel(error)
    }
}

/// A poisoned lock is no harm here: a failed step's memory is overwritten by the next.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
