//! The thread pool: every job runs once on every thread, panics become errors.

use std::ffi::OsString;
use std::process::{Command, Stdio};
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
fn a_panic_whose_payload_panics_when_dropped_is_an_error() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("in the drop");
        }
    }
    let pool = ThreadPool::new();
    for culprit in 0..3 {
        let outcome = pool.run(3, |team| {
            if team.index() == culprit {
                std::panic::panic_any(Bomb);
            }
            let _ = team.wait();
        });
        assert!(matches!(outcome, Err(EngineError::Internal(_))), "{culprit}");
        pool.run(3, |team| team.wait().unwrap()).unwrap();
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

/// What a machine without room for a further thread does: the job runs on the calling one.
#[test]
fn a_refused_thread_is_done_without() {
    if std::env::var_os("POCKETLM_TEST_REFUSED").is_some() {
        let pool = ThreadPool::new();
        let count = AtomicUsize::new(0);
        pool.run(3, |team| {
            assert_eq!((team.index(), team.size()), (0, 1));
            team.wait().unwrap();
            count.fetch_add(1, Ordering::Relaxed);
        })
        .unwrap();
        assert_eq!(count.into_inner(), 1);
        return;
    }
    // No thread can have a stack as large as the address space. The harness then runs the test on its own thread.
    // Where the tests run under an emulator, so must the child: the kernel cannot start its program.
    let runner = std::env::var("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER");
    let mut words: Vec<OsString> = runner
        .iter()
        .filter(|_| cfg!(target_arch = "aarch64"))
        .flat_map(|line| line.split_whitespace().map(OsString::from))
        .collect();
    words.push(std::env::current_exe().unwrap().into());
    let mut child = Command::new(&words[0])
        .args(&words[1..])
        .args(["--exact", "a_refused_thread_is_done_without", "--test-threads=1"])
        .env("POCKETLM_TEST_REFUSED", "1")
        .env("RUST_MIN_STACK", (1usize << 47).to_string())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    for _ in 0..600 {
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success());
            return;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    child.kill().unwrap();
    panic!("the job waits for threads that do not exist");
}
