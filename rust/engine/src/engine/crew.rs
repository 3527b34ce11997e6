//! How many threads steps run on, found by trying while they run.
//!
//! More threads are not always faster: a small model's step ends before a second thread has helped, memory may be saturated
//! by half of the cores, and on a machine that others use a step waits for its slowest thread. So now and then a step runs on
//! the next smaller or larger number of threads, between two that run on the present one, and the number changes where that
//! was faster in most of several such trials. Steps of each number of rows are told apart up to sixteen, which guesses and batches have;
//! those of prompts are one kind, and compared by their time for a row if they are about as wide, as they are planned by the
//! time that they take. Trials become rarer as long as they fail. Nothing here changes a result: those do not depend on the number of threads.
//!
//! A thread that had no part in a step has gone to sleep meanwhile, and the next step with it waits for it to wake: a third of
//! a small model's step. So the first step on more threads than the last one is not counted, on either side of a comparison, unless all
//! of its kind have to wake them.

/// Rows from which a step counts as a prompt.
const MANY: usize = 17;
/// Steps before the first trial, and after one that brought a change.
const FIRST: u32 = 16;
/// Steps between trials at most.
const LONGEST: u32 = 8192;
/// Trials before a decision.
const TRIALS: usize = 5;
/// The number changes if a step took less than this share of the time.
const BETTER: f64 = 0.95;
/// What took more than this share is not tried again at once.
const WORSE: f64 = 1.25;

/// The number of threads for each kind of step: of each number of rows below [`MANY`], and of more.
#[derive(Debug)]
pub(crate) struct CrewSize {
    /// Numbers to choose from, descending.
    counts: Vec<usize>,
    classes: [Class; MANY],
    /// The number of the last step, by its index.
    last: usize,
    held: bool,
}

/// What is known of steps of one kind.
#[derive(Debug, Default, Clone)]
struct Class {
    /// The present number, by its index.
    at: usize,
    /// Rows of the last step that was compared: only steps of about as many are.
    rows: usize,
    /// Whether the step after it was of another width, such as the end of a prompt.
    odd: bool,
    /// The number with which the last step had to wake threads.
    woke: Option<usize>,
    wait: u32,
    interval: u32,
    /// Whether the last trial was with more threads.
    upwards: bool,
    trial: Option<Trial>,
}

/// Steps that alternate between the present number and another.
#[derive(Debug, Clone)]
struct Trial {
    other: usize,
    /// Time, for a row, of the last step with the present number.
    before: f64,
    /// Time of the step with the other one, until the step after it.
    between: Option<f64>,
    ratios: [f64; TRIALS],
    count: usize,
}

impl CrewSize {
    /// Up to `threads`; that number alone if it is `fixed`.
    pub fn new(threads: usize, fixed: bool) -> Self {
        let mut counts = vec![threads];
        while !fixed && let Some(&last) = counts.last().filter(|&&last| last > 1) {
            // Steps of about a quarter.
            counts.push((3 * last / 4).min(last - 1));
        }
        let class = Class { wait: FIRST, interval: FIRST, ..Class::default() };
        Self { counts, classes: std::array::from_fn(|_| class.clone()), last: 0, held: false }
    }

    /// Stays with the present numbers, or goes on trying others.
    pub fn hold(&mut self, held: bool) {
        self.held = held;
        for class in &mut self.classes {
            class.trial = None;
            class.wait = class.interval;
        }
    }

    /// Threads for a step of so many rows.
    pub fn of(&self, rows: usize) -> usize {
        self.counts[self.index(rows)]
    }

    fn index(&self, rows: usize) -> usize {
        let class = &self.classes[class(rows)];
        let trying = class.trial.as_ref().filter(|trial| trial.between.is_none() && alike(class.rows, rows));
        trying.map_or(class.at, |trial| trial.other)
    }

    /// Takes note of the time of a step that ran on [`CrewSize::of`] threads.
    pub fn note(&mut self, rows: usize, seconds: f64) {
        if self.held {
            return;
        }
        let fewest = self.counts.len() - 1;
        let used = self.index(rows);
        let class = &mut self.classes[class(rows)];
        // Lower indices are more threads: some of them had to wake. Where they have to each time, as between steps of other kinds,
        // it counts.
        let wakes = used < std::mem::replace(&mut self.last, used);
        let usual = class.woke == Some(used);
        let woke = wakes && !usual;
        if wakes {
            class.woke = Some(used);
        } else if usual {
            class.woke = None;
        }
        if !alike(class.rows, rows) {
            // Times of different steps say nothing about each other. One among others of a width is passed over.
            if class.odd || class.trial.is_none() {
                (class.rows, class.trial) = (rows, None);
            }
            class.odd = class.trial.is_some();
            return;
        }
        (class.rows, class.odd) = (rows, false);
        let seconds = seconds / rows.max(1) as f64;
        let Some(trial) = &mut class.trial else {
            class.wait = class.wait.saturating_sub(1);
            if class.wait == 0 && fewest > 0 && !woke {
                class.upwards = if class.at == 0 { false } else { class.at == fewest || !class.upwards };
                let other = if class.upwards { class.at - 1 } else { class.at + 1 };
                let ratios = [0.0; TRIALS];
                class.trial = Some(Trial { other, before: seconds, between: None, ratios, count: 0 });
            }
            return;
        };
        if woke {
            return;
        }
        let Some(between) = trial.between.take() else {
            trial.between = Some(seconds);
            return;
        };
        trial.ratios[trial.count] = between / (0.5 * (trial.before + seconds)).max(f64::MIN_POSITIVE);
        trial.before = seconds;
        trial.count += 1;
        if trial.count == TRIALS || trial.ratios[trial.count - 1] > WORSE {
            let better = trial.ratios[..trial.count].iter().filter(|&&ratio| ratio < BETTER).count();
            let changed = 2 * better > TRIALS;
            class.interval = if changed { FIRST } else { (2 * class.interval).min(LONGEST) };
            class.at = if changed { trial.other } else { class.at };
            class.wait = class.interval;
            class.trial = None;
        }
    }
}

/// Whether steps of `a` and of `b` rows take about as long for each.
fn alike(a: usize, b: usize) -> bool {
    a == b || (a.min(b) >= MANY && a.abs_diff(b) <= a.max(b) / 8)
}

fn class(rows: usize) -> usize {
    rows.clamp(1, MANY) - 1
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Runs steps that take `time(threads)`; returns the mean time of each.
    fn run(crew: &mut CrewSize, rows: usize, steps: usize, time: impl Fn(usize, usize) -> f64) -> f64 {
        let mut total = 0.0;
        for step in 0..steps {
            let seconds = time(crew.of(rows), step);
            crew.note(rows, seconds);
            total += seconds;
        }
        total / steps as f64
    }

    #[test]
    fn a_number_that_was_asked_for_is_kept() {
        let mut crew = CrewSize::new(4, true);
        run(&mut crew, 1, 500, |threads, _| {
            assert_eq!(threads, 4);
            threads as f64
        });
    }

    #[test]
    fn kinds_of_steps_are_told_apart_and_follow_a_change() {
        let mut crew = CrewSize::new(2, false);
        run(&mut crew, 1, 400, |threads, _| threads as f64);
        run(&mut crew, 300, 400, |threads, _| 1.0 / threads as f64);
        assert_eq!((crew.of(1), crew.of(300), crew.of(2)), (1, 2, 2));
        run(&mut crew, 1, 20_000, |threads, _| 1.0 / threads as f64);
        assert_eq!(crew.of(1), 2);
    }

    #[test]
    fn waking_is_not_held_against_threads() {
        for (small, large) in [(1.0, 0.85), (1.0, 1.2)] {
            let mut crew = CrewSize::new(2, false);
            let mut last = 2;
            let mut steps = |count, small, large| {
                for _ in 0..count {
                    let threads = crew.of(1);
                    let wake = if threads > last { 0.5 } else { 0.0 };
                    crew.note(1, wake + if threads == 2 { large } else { small });
                    last = threads;
                }
                last
            };
            let best = if large < small { 2 } else { 1 };
            assert_eq!(steps(20_000, small, large), best);
            // Something else takes the second core for a while.
            assert_eq!(steps(20_000, 1.0, 2.0), 1);
            assert_eq!(steps(20_000, small, large), best);
        }
    }

    #[test]
    fn numbers_are_held_for_as_long_as_asked() {
        let mut crew = CrewSize::new(2, false);
        crew.hold(true);
        run(&mut crew, 1, 400, |threads, _| {
            assert_eq!(threads, 2);
            threads as f64
        });
        crew.hold(false);
        run(&mut crew, 1, 400, |threads, _| threads as f64);
        assert_eq!(crew.of(1), 1);
        crew.hold(true);
        run(&mut crew, 1, 400, |threads, _| {
            assert_eq!(threads, 1);
            1.0 / threads as f64
        });
    }

    #[test]
    fn steps_of_changing_width_are_not_compared() {
        let mut crew = CrewSize::new(2, false);
        for rows in (0..1000).map(|step| 20 + 10 * (step % 3)) {
            assert_eq!(crew.of(rows), 2);
            crew.note(rows, rows as f64);
        }
    }

    #[test]
    fn steps_with_guesses_are_told_apart_by_their_rows() {
        let mut crew = CrewSize::new(2, false);
        for step in 0..3000 {
            let rows = [1, 9, 5, 1, 3, 9][step % 6];
            // A second thread helps nine rows only.
            let threads = crew.of(rows);
            crew.note(rows, if rows == 9 { 1.0 / threads as f64 } else { threads as f64 });
        }
        assert_eq!([1, 3, 5, 9].map(|rows| crew.of(rows)), [1, 1, 1, 2]);
    }

    #[test]
    fn a_width_that_changes_for_good_is_tried_anew() {
        let mut crew = CrewSize::new(2, false);
        for rows in [40, 100, 200] {
            run(&mut crew, rows, 20, |threads, _| threads as f64);
        }
        run(&mut crew, 400, 400, |threads, _| threads as f64);
        assert_eq!(crew.of(400), 1);
    }

    proptest! {
        #[test]
        fn steps_of_prompts_are_tried_though_their_widths_vary(
            rows in 32usize..300, jitter in prop::collection::vec(0.95f64..1.05, 64), end in 6usize..20, most in 2usize..9,
        ) {
            let mut crew = CrewSize::new(most, false);
            for step in 0..3000 {
                // Every so often the end of a prompt, which is short.
                let rows = if step % end == 0 { 17 } else { (rows as f64 * jitter[step % jitter.len()]) as usize };
                crew.note(rows, rows as f64 * crew.of(rows) as f64);
            }
            prop_assert_eq!(crew.of(rows), 1);
        }

        #[test]
        fn the_fastest_number_is_found_and_trying_costs_little(
            most in 1usize..40, best in 1usize..40, noise in prop::collection::vec(0.98f64..1.02, 64),
        ) {
            let best = best.min(most);
            // Falls to `best`, rises behind it.
            let ideal = |threads: usize| 1.0 + (threads as f64 / best as f64).ln().abs();
            let time = |threads: usize, step: usize| ideal(threads) * noise[step % noise.len()];
            let mut crew = CrewSize::new(most, false);
            run(&mut crew, 1, 30_000, time);
            let nearest = crew.counts.iter().map(|&count| ideal(count)).fold(f64::INFINITY, f64::min);
            prop_assert!(ideal(crew.of(1)) <= nearest * 1.08, "{} of {:?}, best {best}", crew.of(1), crew.counts);
            prop_assert!(run(&mut crew, 1, 30_000, time) <= nearest * 1.1);
        }
    }
}
