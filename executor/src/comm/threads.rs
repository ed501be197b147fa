//! Ranks as threads: one mailbox per rank, messages handed over by moving a vector.

use super::{Tag, Transport};
use crate::error::{ExecutorError, Result};
use psim_kernels::cpu::uncounted;
use std::collections::{BTreeMap, VecDeque};
use std::num::NonZero;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a rank looks out for a message before it sleeps, where every rank has a core. A thread that sleeps gives its
/// core back: waking costs tens of microseconds, and the system may put it beside another rank on one core while a core
/// is idle. Messages of a layer come within that time; a rank that waits for another stage sleeps.
const LOOK_OUT: Duration = Duration::from_micros(300);
/// Of it, how long without offering the core to others.
const AT_ONCE: Duration = Duration::from_micros(20);

#[derive(Debug, Default)]
struct Mailbox {
    letters: Mutex<Letters>,
    arrived: Condvar,
    /// Letters that have ever come.
    posted: AtomicU64,
}

#[derive(Debug, Default)]
struct Letters {
    by_sender: BTreeMap<(usize, Tag), VecDeque<Vec<f32>>>,
    stopped: Option<String>,
}

/// The post office of a group of rank threads.
#[derive(Debug)]
pub struct Hub {
    boxes: Vec<Mailbox>,
    /// Zero where ranks share cores: who waits must let the others run.
    look_out: Duration,
}

impl Hub {
    /// A hub for `world` ranks.
    pub fn new(world: usize) -> Arc<Self> {
        Self::among(world, world)
    }

    /// A hub for `world` ranks of `all` that run at once on this machine.
    pub fn among(world: usize, all: usize) -> Arc<Self> {
        let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
        let look_out = if all <= cores { LOOK_OUT } else { Duration::ZERO };
        Arc::new(Self { boxes: (0..world).map(|_| Mailbox::default()).collect(), look_out })
    }

    /// The endpoint of one rank. If it is dropped while its thread panics, all peers are told.
    pub fn endpoint(self: &Arc<Self>, rank: usize) -> ThreadTransport {
        ThreadTransport { hub: Arc::clone(self), rank }
    }

    /// Tells every rank that the run has failed, so that nobody waits for ever.
    pub fn stop(&self, reason: &str) {
        for mailbox in &self.boxes {
            let mut letters = lock(mailbox);
            letters.stopped.get_or_insert_with(|| reason.to_owned());
            mailbox.arrived.notify_all();
        }
    }
}

/// A panicking peer leaves the queue itself intact.
fn lock(mailbox: &Mailbox) -> MutexGuard<'_, Letters> {
    mailbox.letters.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One rank's endpoint.
#[derive(Debug)]
pub struct ThreadTransport {
    hub: Arc<Hub>,
    rank: usize,
}

impl Drop for ThreadTransport {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.hub.stop(&format!("rank {} panicked", self.rank));
        }
    }
}

impl Transport for ThreadTransport {
    fn rank(&self) -> usize {
        self.rank
    }

    fn send(&self, to: usize, tag: Tag, data: Vec<f32>) -> Result<()> {
        let mailbox = &self.hub.boxes[to];
        lock(mailbox).by_sender.entry((self.rank, tag)).or_default().push_back(data);
        mailbox.posted.fetch_add(1, Ordering::Release);
        mailbox.arrived.notify_all();
        Ok(())
    }

    fn receive(&self, from: usize, tag: Tag) -> Result<Vec<f32>> {
        let mailbox = &self.hub.boxes[self.rank];
        let take =
            |letters: &mut Letters| letters.by_sender.get_mut(&(from, tag)).and_then(VecDeque::pop_front);
        if let Some(data) = take(&mut lock(mailbox)) {
            return Ok(data);
        }
        if !self.hub.look_out.is_zero() {
            let found = uncounted(|| {
                let begin = Instant::now();
                let mut seen = u64::MAX;
                while begin.elapsed() < self.hub.look_out {
                    // The lock, which senders need, is taken only where something new has come.
                    let posted = mailbox.posted.load(Ordering::Acquire);
                    if std::mem::replace(&mut seen, posted) != posted
                        && let Some(data) = take(&mut lock(mailbox))
                    {
                        return Some(data);
                    }
                    if begin.elapsed() < AT_ONCE {
                        std::hint::spin_loop();
                    } else {
                        // Whoever else wants this core may have it.
                        std::thread::yield_now();
                    }
                }
                None
            });
            if let Some(data) = found {
                return Ok(data);
            }
        }
        let mut letters = lock(mailbox);
        loop {
            if let Some(data) = take(&mut letters) {
                return Ok(data);
            }
            if let Some(reason) = &letters.stopped {
                return Err(ExecutorError::Peer { rank: self.rank, reason: reason.clone() });
            }
            letters = mailbox.arrived.wait(letters).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::comm::Comm;
    use crate::mesh::Group;
    use psim_models::operator::Dimension;

    fn on_ranks<R: Send>(world: usize, work: impl Fn(&Comm<ThreadTransport>, &Group) -> R + Sync) -> Vec<R> {
        let hub = Hub::new(world);
        std::thread::scope(|scope| {
            let handles: Vec<_> = (0..world)
                .map(|rank| {
                    let (endpoint, work) = (hub.endpoint(rank), &work);
                    scope.spawn(move || {
                        work(&Comm::new(endpoint), &Group { ranks: (0..world).collect(), index: rank })
                    })
                })
                .collect();
            handles.into_iter().map(|h| h.join().unwrap()).collect()
        })
    }

    #[test]
    fn collectives_agree_with_their_definition() {
        for world in [1, 2, 3, 5] {
            let data = |rank: usize| (0..13).map(|i| (rank * 13 + i) as f32).collect::<Vec<_>>();
            let sum: Vec<f32> = (0..13).map(|i| (0..world).map(|r| data(r)[i]).sum()).collect();
            let results = on_ranks(world, |comm, group| {
                let d = Dimension::Tp;
                let reduced = comm.all_reduce(d, group, data(group.index)).unwrap();
                let part = comm.reduce_scatter(d, group, data(group.index)).unwrap();
                let gathered = comm.all_gather(d, group, part).unwrap().concat();
                let parts = (0..world).map(|to| vec![group.index as f32, to as f32]).collect();
                (reduced, gathered, comm.all_to_all(d, group, parts).unwrap())
            });
            for (rank, (reduced, gathered, exchanged)) in results.into_iter().enumerate() {
                assert_eq!(reduced, sum);
                assert_eq!(gathered, sum);
                for (from, part) in exchanged.into_iter().enumerate() {
                    assert_eq!(part, [from as f32, rank as f32]);
                }
            }
        }
    }

    #[test]
    fn a_stopped_peer_ends_the_wait() {
        let hub = Hub::new(2);
        let waiting = hub.endpoint(1);
        let handle = std::thread::spawn(move || waiting.receive(0, Tag::Forward(0, 0)));
        hub.stop("out of memory");
        assert!(handle.join().unwrap().unwrap_err().to_string().contains("out of memory"));
    }
}
