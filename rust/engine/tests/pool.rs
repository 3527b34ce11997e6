//! The thread pool: every job runs once on every thread, panics become errors, and idle workers use no processor time.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use pocketlm_engine::EngineError;
use pocketlm_engine::pool::ThreadPool;

#[test]
fn every_member_runs_and_barriers_hold() {
    let pool = ThreadPool::new();
    for threads in [1, 2, 3, 7] {
        for _ in 0..200 {
            let phases: Vec<AtomicUsize> = (0..5).map(|_| AtomicUsize::new(0)).collect();
            let tails = AtomicUsize::new(0);
            pool.run(threads, |team| {
                assert!(team.index() < team.size() && team.size() == threads);
                for phase in &phases {
                    phase.fetch_add(1, Ordering::Relaxed);
                    team.wait_then(|| {
                        assert_eq!(phase.load(Ordering::Relaxed), threads);
                        tails.fetch_add(1, Ordering::Relaxed);
                    })
                    .unwrap();
                    assert_eq!(phase.load(Ordering::Relaxed), threads);
                }
            })
            .unwrap();
            assert_eq!(tails.into_inner(), 5);
        }
    }
}

#[test]
fn a_panic_is_an_error_and_the_pool_lives_on() {
    let pool = ThreadPool::new();
    for culprit in 0..4 {
        let outcome = pool.run(4, |team| {
            assert_ne!(team.index(), culprit, "deliberate");
            // Those who wait are released, not left behind.
            if team.wait().is_ok() {
                panic!("the barrier let a team pass that is not complete");
            }
        });
        assert!(matches!(outcome, Err(EngineError::Internal(text)) if text.contains("deliberate")));
        pool.run(4, |team| team.wait().unwrap()).unwrap();
    }
}

#[test]
fn a_panic_while_others_wait_for_its_tail_is_an_error() {
    let pool = ThreadPool::new();
    let outcome = pool.run(3, |team| {
        let _ = team.wait_then(|| panic!("in the tail"));
    });
    assert!(matches!(outcome, Err(EngineError::Internal(text)) if text.contains("in the tail")));
    pool.run(3, |team| team.wait().unwrap()).unwrap();
}

#[test]
fn nested_jobs_run_in_place() {
    let pool = ThreadPool::new();
    let count = AtomicUsize::new(0);
    pool.run(3, |_| {
        pool.run(3, |team| {
            assert_eq!((team.index(), team.size()), (0, 1));
            team.wait().unwrap();
            count.fetch_add(1, Ordering::Relaxed);
        })
        .unwrap();
    })
    .unwrap();
    assert_eq!(count.into_inner(), 3);
}

#[test]
fn callers_take_turns() {
    let pool = ThreadPool::new();
    let running = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..50 {
                    pool.run(3, |team| {
                        running.fetch_add(1, Ordering::SeqCst);
                        team.wait().unwrap();
                        assert_eq!(running.load(Ordering::SeqCst), 3);
                        team.wait_then(|| running.store(0, Ordering::SeqCst)).unwrap();
                    })
                    .unwrap();
                }
            });
        }
    });
}

/// Clock ticks of 10 ms that this process has used.
#[cfg(target_os = "linux")]
fn ticks() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

/// Ignored by default only because the other tests of this binary run beside it; `cargo test -- --ignored` runs it alone.
#[cfg(target_os = "linux")]
#[test]
#[ignore = "measures the whole process, so it must run alone"]
fn idle_workers_sleep() {
    let pool = ThreadPool::new();
    pool.run(4, |team| team.wait().unwrap()).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    let before = ticks();
    std::thread::sleep(Duration::from_secs(1));
    let used = ticks() - before;
    assert!(used <= 5, "{used} ticks of 10 ms in an idle second");
}
