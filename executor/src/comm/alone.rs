//! One rank without its peers: collectives become waits of their predicted duration.
//!
//! What a peer would have sent is made up from this rank's own data, so that shapes, memory and the work between the
//! collectives are those of the whole run.

use super::{Comm, Tag, Transport};
use crate::error::{ExecutorError, Result};
use psim_models::operator::{CollectiveKind, Dimension};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Seconds of a collective of so many bytes (as nccl-tests counts them) among so many ranks.
pub type Pricing = dyn Fn(Dimension, CollectiveKind, u64, usize) -> f64 + Send + Sync;

/// Waits shorter than this are spun: a sleeping thread wakes up too late.
const SPIN: f64 = 200e-6;

/// What replaces the peers.
pub(super) struct StandIn {
    price: Arc<Pricing>,
}

impl fmt::Debug for StandIn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StandIn").finish_non_exhaustive()
    }
}

/// The transport of a rank without peers: nothing can be sent or received.
#[derive(Debug, Clone, Copy)]
pub struct Absent {
    rank: usize,
}

impl Transport for Absent {
    fn rank(&self) -> usize {
        self.rank
    }
    fn send(&self, _: usize, _: Tag, _: Vec<f32>) -> Result<()> {
        Ok(())
    }
    fn receive(&self, from: usize, _: Tag) -> Result<Vec<f32>> {
        Err(ExecutorError::Peer { rank: self.rank, reason: format!("rank {from} does not run here") })
    }
}

impl Comm<Absent> {
    /// Rank `rank` alone, with what the collectives would take.
    pub fn alone(rank: usize, price: Arc<Pricing>) -> Self {
        let stand_in = StandIn { price };
        Self { stand_in: Some(stand_in), ..Self::new(Absent { rank }) }
    }
}

/// Waits until `seconds` after `start`.
fn wait_until(start: Instant, seconds: f64) {
    loop {
        let left = seconds - start.elapsed().as_secs_f64();
        if left <= 0.0 {
            return;
        }
        if left > SPIN {
            std::thread::sleep(Duration::from_secs_f64(left - 0.5 * SPIN));
        } else {
            std::hint::spin_loop();
        }
    }
}

impl<T: Transport> Comm<T> {
    /// Peers do not run.
    pub(crate) fn is_alone(&self) -> bool {
        self.stand_in.is_some()
    }

    /// Predicted seconds of a collective.
    pub(crate) fn price(&self, dimension: Dimension, kind: CollectiveKind, bytes: u64, ranks: usize) -> f64 {
        let seconds = self.stand_in.as_ref().map_or(0.0, |s| (s.price)(dimension, kind, bytes, ranks));
        if seconds.is_finite() { seconds.max(0.0) } else { 0.0 }
    }

    /// In place of a collective: does `work` (making up the result) and waits for the rest of its predicted duration.
    pub(crate) fn pretend<R>(
        &self,
        dimension: Dimension,
        kind: CollectiveKind,
        bytes: u64,
        ranks: usize,
        work: impl FnOnce() -> Result<R>,
    ) -> Result<R> {
        self.charge(dimension, |account| {
            let start = Instant::now();
            let result = work()?;
            let seconds = self.price(dimension, kind, bytes, ranks);
            wait_until(start, seconds);
            account.wait += seconds;
            account.sent += bytes;
            Ok(result)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::Group;

    #[test]
    fn missing_peers_cost_their_predicted_time_and_mirror_this_rank() {
        let price: Arc<Pricing> = Arc::new(|_, _, bytes, ranks| 1e-5 * (bytes as f64) * ranks as f64);
        let comm = Comm::alone(1, price);
        let group = Group { ranks: vec![0, 1, 2], index: 1 };
        let d = Dimension::Ep;
        let start = Instant::now();
        assert_eq!(comm.all_gather(d, &group, vec![1.0, 2.0]).unwrap(), vec![vec![1.0, 2.0]; 3]);
        let parts = vec![vec![1.0], vec![2.0], vec![3.0]];
        assert_eq!(comm.all_to_all(d, &group, parts).unwrap(), vec![vec![2.0]; 3]);
        let expected = 1e-5 * 3.0 * (24.0 + 12.0);
        assert!(start.elapsed().as_secs_f64() >= expected);
        assert!((comm.accounts()[&d].wait - expected).abs() < 1e-9);
        assert!(comm.receive(d, 0, Tag::Bucket(0)).is_err());
    }
}
