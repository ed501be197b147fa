//! Communication between ranks: a transport that sends and receives, collectives on top, and an account of the time.
//!
//! Collectives are direct (every rank sends every other its part), which moves the fewest bytes; sums run in the
//! order of the group, so every rank and every run gets the same bits. The account keeps the time a rank waits for
//! its peers apart from the time it spends copying and adding.

mod alone;
mod mpi;
mod process;
mod tcp;
mod threads;

pub use alone::{Absent, Pricing};
pub use mpi::Mpi;
pub use process::{Process, Wire};
pub use tcp::Tcp;
pub use threads::{Hub, ThreadTransport};

use crate::error::Result;
use crate::mesh::Group;
use alone::StandIn;
use psim_models::operator::{CollectiveKind, Dimension};
use serde::{Deserialize, Serialize};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::time::Instant;

/// Names a message among those between two ranks; equal tags are delivered in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tag {
    /// Part of a collective of this dimension.
    Collective(Dimension),
    /// Part of a gradient reduction or parameter gathering of this bucket.
    Bucket(u32),
    /// Gathering of the sharded parameters of this bucket.
    Shard(u32),
    /// Activation of a micro-batch into a model chunk.
    Forward(u32, u32),
    /// Gradient of a micro-batch out of a model chunk.
    Backward(u32, u32),
}

/// Sends and receives between ranks; sending never waits for the receiver.
pub trait Transport {
    /// This rank.
    fn rank(&self) -> usize;
    /// Sends `data` to `to`.
    ///
    /// # Errors
    /// When a peer has stopped.
    fn send(&self, to: usize, tag: Tag, data: Vec<f32>) -> Result<()>;
    /// Waits for the next message with this tag.
    ///
    /// # Errors
    /// When a peer has stopped.
    fn receive(&self, from: usize, tag: Tag) -> Result<Vec<f32>>;
}

/// Time and bytes of one dimension.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Account {
    /// Seconds blocked on peers; where peers are missing, the seconds that stand in for them.
    pub wait: f64,
    /// Seconds in communication altogether.
    pub total: f64,
    /// Bytes sent to other ranks (4 per element).
    pub sent: u64,
    /// Calls.
    pub calls: u64,
}

/// A transport with collectives and an account per dimension.
#[derive(Debug)]
pub struct Comm<T> {
    transport: T,
    accounts: RefCell<BTreeMap<Dimension, Account>>,
    /// Charges that are open: only the outermost adds to the total.
    depth: Cell<u32>,
    /// Set where this rank runs without its peers.
    stand_in: Option<StandIn>,
}

/// First element of part `index` of `len` elements cut into `parts`: all as long as the first, the last ones shorter.
pub(crate) fn part(len: usize, parts: usize, index: usize) -> usize {
    (len.div_ceil(parts) * index).min(len)
}

impl<T: Transport> Comm<T> {
    /// Wraps a transport.
    pub fn new(transport: T) -> Self {
        Self { transport, accounts: RefCell::default(), depth: Cell::new(0), stand_in: None }
    }

    /// This rank.
    pub fn rank(&self) -> usize {
        self.transport.rank()
    }

    /// Communication made of several calls and of the copies around them: all of it counts as communication.
    pub(crate) fn staged<R>(&self, dimension: Dimension, work: impl FnOnce() -> Result<R>) -> Result<R> {
        self.charge(dimension, |_| work())
    }

    /// Adds what was measured elsewhere: communication between devices, on their own clocks.
    pub(crate) fn add(&self, dimension: Dimension, more: Account) {
        let mut accounts = self.accounts.borrow_mut();
        let sum = accounts.entry(dimension).or_default();
        sum.wait += more.wait;
        sum.total += more.total;
        sum.sent += more.sent;
        sum.calls += more.calls;
    }

    /// What has been communicated so far.
    pub fn accounts(&self) -> BTreeMap<Dimension, Account> {
        self.accounts.borrow().clone()
    }

    /// Seconds in communication so far, over all dimensions.
    pub fn total(&self) -> f64 {
        self.accounts.borrow().values().map(|a| a.total).sum()
    }

    /// Seconds blocked on peers of one dimension so far.
    pub fn waited(&self, dimension: Dimension) -> f64 {
        self.accounts.borrow().get(&dimension).map_or(0.0, |a| a.wait)
    }

    /// Starts a new account.
    pub fn reset(&self) {
        self.accounts.borrow_mut().clear();
    }

    fn charge<R>(&self, dimension: Dimension, work: impl FnOnce(&mut Account) -> Result<R>) -> Result<R> {
        let start = Instant::now();
        let mut account = Account::default();
        self.depth.set(self.depth.get() + 1);
        let result = work(&mut account);
        self.depth.set(self.depth.get() - 1);
        let mut accounts = self.accounts.borrow_mut();
        let sum = accounts.entry(dimension).or_default();
        sum.wait += account.wait;
        sum.sent += account.sent;
        if self.depth.get() == 0 {
            sum.calls += 1;
            sum.total += start.elapsed().as_secs_f64();
        }
        result
    }

    fn receive_timed(&self, from: usize, tag: Tag, account: &mut Account) -> Result<Vec<f32>> {
        let start = Instant::now();
        let data = self.transport.receive(from, tag)?;
        account.wait += start.elapsed().as_secs_f64();
        Ok(data)
    }

    fn send_counted(&self, to: usize, tag: Tag, data: Vec<f32>, account: &mut Account) -> Result<()> {
        if to != self.transport.rank() {
            account.sent += 4 * data.len() as u64;
        }
        self.transport.send(to, tag, data)
    }

    /// Point to point: sends.
    ///
    /// # Errors
    /// When a peer has stopped.
    pub fn send(&self, dimension: Dimension, to: usize, tag: Tag, data: Vec<f32>) -> Result<()> {
        self.charge(dimension, |account| self.send_counted(to, tag, data, account))
    }

    /// Point to point: receives.
    ///
    /// # Errors
    /// When a peer has stopped.
    pub fn receive(&self, dimension: Dimension, from: usize, tag: Tag) -> Result<Vec<f32>> {
        self.charge(dimension, |account| self.receive_timed(from, tag, account))
    }

    /// Every rank's vector, in group order (lengths may differ).
    ///
    /// # Errors
    /// When a peer has stopped.
    pub fn all_gather(&self, dimension: Dimension, group: &Group, mine: Vec<f32>) -> Result<Vec<Vec<f32>>> {
        self.all_gather_tagged(dimension, Tag::Collective(dimension), group, mine)
    }

    pub(crate) fn all_gather_tagged(
        &self,
        dimension: Dimension,
        tag: Tag,
        group: &Group,
        mine: Vec<f32>,
    ) -> Result<Vec<Vec<f32>>> {
        if group.size() == 1 {
            return Ok(vec![mine]);
        }
        if self.is_alone() {
            let bytes = 4 * (mine.len() * group.size()) as u64;
            let kind = CollectiveKind::AllGather;
            return self.pretend(dimension, kind, bytes, group.size(), || Ok(vec![mine; group.size()]));
        }
        self.charge(dimension, |account| {
            for (i, &peer) in group.ranks.iter().enumerate() {
                if i != group.index {
                    self.send_counted(peer, tag, mine.clone(), account)?;
                }
            }
            let mut mine = Some(mine);
            group
                .ranks
                .iter()
                .enumerate()
                .map(|(i, &peer)| match (i == group.index, mine.take()) {
                    (true, Some(own)) => Ok(own),
                    (_, kept) => {
                        mine = kept;
                        self.receive_timed(peer, tag, account)
                    }
                })
                .collect()
        })
    }

    /// Different data to every rank; returns what every rank sent here, in group order.
    ///
    /// # Errors
    /// When a peer has stopped.
    pub fn all_to_all(
        &self,
        dimension: Dimension,
        group: &Group,
        parts: Vec<Vec<f32>>,
    ) -> Result<Vec<Vec<f32>>> {
        if group.size() == 1 {
            return Ok(parts);
        }
        if self.is_alone() {
            // Every peer does as this rank does with itself.
            let bytes = parts.iter().map(|p| 4 * p.len() as u64).sum();
            let own = parts.get(group.index).cloned().unwrap_or_default();
            let kind = CollectiveKind::AllToAll;
            return self.pretend(dimension, kind, bytes, group.size(), || Ok(vec![own; group.size()]));
        }
        self.charge(dimension, |account| {
            let tag = Tag::Collective(dimension);
            for (&peer, data) in group.ranks.iter().zip(parts) {
                self.send_counted(peer, tag, data, account)?;
            }
            group.ranks.iter().map(|&peer| self.receive_timed(peer, tag, account)).collect()
        })
    }

    /// This rank's part of the sum over the group; part `i` is elements `part(len, n, i)..part(len, n, i + 1)`.
    ///
    /// # Errors
    /// When a peer has stopped.
    pub fn reduce_scatter(&self, dimension: Dimension, group: &Group, data: Vec<f32>) -> Result<Vec<f32>> {
        if group.size() == 1 {
            return Ok(data);
        }
        if self.is_alone() {
            let (n, bytes) = (group.size(), 4 * data.len() as u64);
            return self.pretend(dimension, CollectiveKind::ReduceScatter, bytes, n, || {
                Ok(data[part(data.len(), n, group.index)..part(data.len(), n, group.index + 1)].to_vec())
            });
        }
        let tag = Tag::Collective(dimension);
        self.post_parts(dimension, tag, group, &data)?;
        self.sum_parts(dimension, tag, group)
    }

    /// First half of a reduce-scatter: sends the parts, waits for nothing.
    pub(crate) fn post_parts(
        &self,
        dimension: Dimension,
        tag: Tag,
        group: &Group,
        data: &[f32],
    ) -> Result<()> {
        self.charge(dimension, |account| {
            let n = group.size();
            for (i, &peer) in group.ranks.iter().enumerate() {
                let piece = data[part(data.len(), n, i)..part(data.len(), n, i + 1)].to_vec();
                self.send_counted(peer, tag, piece, account)?;
            }
            Ok(())
        })
    }

    /// Second half: receives the parts and adds them in group order.
    pub(crate) fn sum_parts(&self, dimension: Dimension, tag: Tag, group: &Group) -> Result<Vec<f32>> {
        self.charge(dimension, |account| {
            let mut sum: Vec<f32> = Vec::new();
            for (i, &peer) in group.ranks.iter().enumerate() {
                let piece = self.receive_timed(peer, tag, account)?;
                if i == 0 {
                    sum = piece;
                } else {
                    sum.iter_mut().zip(&piece).for_each(|(s, p)| *s += p);
                }
            }
            Ok(sum)
        })
    }

    /// Sum over the group, everywhere.
    ///
    /// # Errors
    /// When a peer has stopped.
    pub fn all_reduce(&self, dimension: Dimension, group: &Group, data: Vec<f32>) -> Result<Vec<f32>> {
        if group.size() == 1 {
            return Ok(data);
        }
        if self.is_alone() {
            let bytes = 4 * data.len() as u64;
            return self.pretend(dimension, CollectiveKind::AllReduce, bytes, group.size(), || Ok(data));
        }
        let mine = self.reduce_scatter(dimension, group, data)?;
        Ok(self.all_gather(dimension, group, mine)?.concat())
    }
}
