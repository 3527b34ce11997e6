//! Idle workers use no processor time. The whole process is measured, so no other test is in this file.
#![cfg(target_os = "linux")]

use std::time::Duration;

use pocketlm_engine::pool::ThreadPool;

/// Clock ticks of 10 ms that this process has used.
fn ticks() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

#[test]
fn idle_workers_sleep() {
    let pool = ThreadPool::new();
    pool.run(4, |team| team.wait().unwrap()).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    let before = ticks();
    std::thread::sleep(Duration::from_secs(1));
    let used = ticks() - before;
    assert!(used <= 5, "{used} ticks of 10 ms in an idle second");
}
