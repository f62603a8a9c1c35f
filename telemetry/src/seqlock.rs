//! A record of `N` words with one writer and any number of readers: no lock, no `unsafe`.
//!
//! The words are atomics, so a torn read is merely a wrong value, never undefined behaviour; the
//! sequence number tells a reader that it happened. The order of operations is the one of Hans
//! Boehm, "Can seqlocks get along with programming language memory models?" (MSPC 2012), figure 6.

use crate::sync::{AtomicU64, Ordering, fence, spin_loop};

/// Words that are always read together.
///
/// The writer never waits. A reader repeats its pass while a write is going on.
#[derive(Debug)]
pub(crate) struct SeqLock<const N: usize> {
    /// Even: at rest. Odd: the words are being replaced.
    sequence: AtomicU64,
    words: [AtomicU64; N],
}

impl<const N: usize> SeqLock<N> {
    /// All words zero.
    pub(crate) fn new() -> Self {
        Self { sequence: AtomicU64::new(0), words: std::array::from_fn(|_| AtomicU64::new(0)) }
    }

    /// Replaces all words. At most one thread may be in here at a time: the callers of this module
    /// give each record exactly one handle, which is not `Clone` and writes through `&mut self`.
    pub(crate) fn write(&self, words: &[u64; N]) {
        let sequence = self.sequence.load(Ordering::Relaxed);
        self.sequence.store(sequence.wrapping_add(1), Ordering::Relaxed);
        // A reader that sees one of the new words also sees the odd number.
        fence(Ordering::Release);
        for (cell, word) in self.words.iter().zip(words) {
            cell.store(*word, Ordering::Relaxed);
        }
        self.sequence.store(sequence.wrapping_add(2), Ordering::Release);
    }

    /// The words of one single write.
    pub(crate) fn read(&self) -> [u64; N] {
        loop {
            if let Some(words) = self.try_read() {
                return words;
            }
            wait();
        }
    }

    /// One pass; nothing when a write got in between.
    fn try_read(&self) -> Option<[u64; N]> {
        let before = self.sequence.load(Ordering::Acquire);
        if before % 2 == 1 {
            return None;
        }
        let words = std::array::from_fn(|at| self.words[at].load(Ordering::Relaxed));
        fence(Ordering::Acquire);
        (self.sequence.load(Ordering::Relaxed) == before).then_some(words)
    }
}

/// A write takes some ten nanoseconds, unless its thread was descheduled in the middle of it.
fn wait() {
    spin_loop();
    #[cfg(loom)]
    loom::thread::yield_now();
}

#[cfg(all(test, loom))]
mod loom_tests {
    use loom::{sync::Arc, thread};

    use super::SeqLock;

    /// Every interleaving: a pass never mixes the words of two writes.
    #[test]
    fn a_pass_is_never_torn() {
        loom::model(|| {
            let lock = Arc::new(SeqLock::<2>::new());
            let writer = {
                let lock = Arc::clone(&lock);
                thread::spawn(move || {
                    lock.write(&[1, 1]);
                    lock.write(&[2, 2]);
                })
            };
            if let Some([a, b]) = lock.try_read() {
                assert_eq!(a, b);
            }
            writer.join().expect("the writer does not panic");
            assert_eq!(lock.read(), [2, 2]);
        });
    }

    /// What was published before something else was published is seen by whoever sees the latter.
    #[test]
    fn the_later_record_never_runs_ahead() {
        loom::model(|| {
            let lane = Arc::new(SeqLock::<1>::new());
            let writer = Arc::new(SeqLock::<1>::new());
            let thread = {
                let (lane, writer) = (Arc::clone(&lane), Arc::clone(&writer));
                thread::spawn(move || {
                    lane.write(&[1]);
                    writer.write(&[1]);
                })
            };
            if let Some([stored]) = writer.try_read()
                && let Some([appended]) = lane.try_read()
            {
                assert!(stored <= appended, "{stored} stored of {appended}");
            }
            thread.join().expect("the writer does not panic");
        });
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::{sync::Arc, thread};

    use super::SeqLock;

    #[test]
    fn readers_see_whole_records_while_the_writer_runs() {
        let lock = Arc::new(SeqLock::<24>::new());
        let rounds = 200_000_u64;
        let readers: Vec<_> = (0..2)
            .map(|_| {
                let lock = Arc::clone(&lock);
                thread::spawn(move || {
                    let mut last = 0;
                    while last < rounds {
                        let words = lock.read();
                        assert!(words.iter().all(|word| *word == words[0]), "torn: {words:?}");
                        assert!(words[0] >= last, "time ran backwards");
                        last = words[0];
                    }
                })
            })
            .collect();
        for round in 1..=rounds {
            lock.write(&[round; 24]);
        }
        for reader in readers {
            reader.join().expect("no reader saw a torn record");
        }
    }
}
