//! Division of a product's tiles among threads: each has a run of its own, which it takes piece by piece from the front; who is done
//! with its own takes from the ends of the others'.
//!
//! What a thread reads is then in order but for the last pieces, so that the processor's prefetchers seldom start anew and do not fetch
//! what another thread reads. With two threads that took turns at one counter instead, reading 1 MB took 42 µs rather than 35, of
//! which a step of a 1B model at 2 bits has 32, and 4 MB 141 rather than 132 (two Zen 4 cores, 35 GB/s).

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

/// What is taken of each thread's share.
pub(crate) struct Shares(Vec<Taken>);

/// Pieces taken from the front (upper half) and from the end (lower half) of a thread's share, in a line of its own.
#[derive(Default)]
#[repr(align(64))]
struct Taken(AtomicU64);

/// How much work a phase has.
#[derive(Debug, Clone, Copy)]
pub(super) struct Work {
    pub tiles: usize,
    /// Tiles of a piece: claims are made of whole ones, but for the last piece of all.
    pub piece: usize,
    /// The most tiles that are claimed at once: a piece or more.
    pub most: usize,
}

impl Work {
    /// The pieces of a thread's share.
    fn share(self, thread: usize, threads: usize) -> Range<usize> {
        let pieces = self.tiles.div_ceil(self.piece);
        pieces * thread / threads..pieces * (thread + 1) / threads
    }
}

impl Shares {
    pub fn new(threads: usize) -> Self {
        Self((0..threads).map(|_| Taken::default()).collect())
    }

    /// Nothing is taken any more. No thread may claim meanwhile.
    pub fn reset(&self) {
        for taken in &self.0 {
            taken.0.store(0, Ordering::Relaxed);
        }
    }

    /// The next tiles for a thread of `threads`, of its own share or of another's; none if there are none left. Claims shrink with
    /// what is left of a share, so that all threads end together.
    ///
    /// Panics if there are more threads than shares, or no room for a piece.
    pub(super) fn claim(&self, work: Work, thread: usize, threads: usize) -> Option<Range<usize>> {
        (0..threads).find_map(|i| {
            let owner = (thread + i) % threads;
            let share = work.share(owner, threads);
            let taken = &self.0[owner].0;
            let mut now = taken.load(Ordering::Relaxed);
            loop {
                let (front, back) = ((now >> 32) as usize, (now & u64::from(u32::MAX)) as usize);
                let left = share.len() - front - back;
                let part = if threads == 1 {
                    left
                } else if owner == thread {
                    left / 4
                } else {
                    left / 2
                };
                let count = part.clamp(1, work.most / work.piece).min(left);
                if count == 0 {
                    return None;
                }
                let (start, new) = if owner == thread {
                    (share.start + front, now + ((count as u64) << 32))
                } else {
                    (share.end - back - count, now + count as u64)
                };
                match taken.compare_exchange_weak(now, new, Ordering::Relaxed, Ordering::Relaxed) {
                    Ok(_) => {
                        let end = ((start + count) * work.piece).min(work.tiles);
                        return Some(start * work.piece..end);
                    }
                    Err(other) => now = other,
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    fn take(shares: &Shares, work: Work, thread: usize, threads: usize) -> Vec<Range<usize>> {
        std::iter::from_fn(|| shares.claim(work, thread, threads)).collect()
    }

    fn check(mut claims: Vec<Range<usize>>, work: Work) {
        claims.sort_by_key(|claim| claim.start);
        let mut at = 0;
        for claim in claims {
            assert_eq!(claim.start, at, "each tile is claimed once");
            assert!(claim.len() <= work.most.max(work.piece) && !claim.is_empty());
            at = claim.end;
        }
        assert_eq!(at, work.tiles, "all are");
    }

    #[test]
    fn a_thread_reads_its_own_share_in_order_and_then_the_ends_of_others() {
        let (shares, work) = (Shares::new(2), Work { tiles: 64, piece: 1, most: 64 });
        let claims = take(&shares, work, 1, 2);
        let own = claims.iter().take_while(|claim| claim.start >= 32);
        assert!(own.clone().zip(own.skip(1)).all(|(one, next)| one.end == next.start));
        let stolen: Vec<_> = claims.iter().filter(|claim| claim.start < 32).collect();
        assert_eq!(*stolen[0], 16..32);
        assert!(stolen.windows(2).all(|pair| pair[0].start == pair[1].end));
        check(claims, work);
        assert!(shares.claim(work, 0, 2).is_none());
        shares.reset();
        assert_eq!(shares.claim(work, 0, 2), Some(0..8));
    }

    #[test]
    fn one_thread_takes_all_that_it_has_room_for() {
        let shares = Shares::new(1);
        assert_eq!(take(&shares, Work { tiles: 10, piece: 4, most: 8 }, 0, 1), [0..8, 8..10]);
    }

    proptest::proptest! {
        #[test]
        fn every_tile_is_claimed_once(
            tiles in 0usize..300, piece in 1usize..9, most in 1usize..9, threads in 1usize..6
        ) {
            let work = Work { tiles, piece, most: most * piece };
            let (shares, claims) = (Shares::new(threads), Mutex::new(Vec::new()));
            std::thread::scope(|scope| {
                for thread in 0..threads {
                    let (shares, claims) = (&shares, &claims);
                    scope.spawn(move || {
                        let mine = take(shares, work, thread, threads);
                        claims.lock().unwrap().extend(mine);
                    });
                }
            });
            check(claims.into_inner().unwrap(), work);
        }
    }
}
