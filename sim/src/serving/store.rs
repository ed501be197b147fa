//! Requests that are in the system, and what is known of each. Memory follows the requests that are alive, not those
//! of the run.

use super::speculation::Draws;
use psim_models::serving::Request;

/// No request, no node.
pub(super) const NONE: u32 = u32::MAX;

/// What is known of a request while it is served.
#[derive(Debug, Clone, Copy)]
pub(super) struct Progress {
    pub(super) sent: u64,
    /// When an engine first took it out of its queue.
    pub(super) admitted: u64,
    pub(super) first_token: u64,
    pub(super) finish: u64,
    pub(super) generated: u32,
    pub(super) preemptions: u32,
    pub(super) replica: u32,
    pub(super) refused: bool,
    /// Node of its lane's prefix tree that it holds.
    pub(super) holds: u32,
    /// It holds its adapter in its lane.
    pub(super) holds_adapter: bool,
    /// Tokens of its cache that wait in host memory to come back; 0 where it is computed again.
    pub(super) swapped: u32,
    /// Tokens of its cache of which host memory has a copy that is still right.
    pub(super) host_copy: u32,
    /// Its cache or adapter is on the device from then on.
    pub(super) ready: u64,
    /// Rank under a fair policy; the highest runs first.
    pub(super) priority: u64,
    /// Highest exponential mean of its gaps so far, picoseconds.
    pub(super) slowest: u64,
}

impl Default for Progress {
    fn default() -> Self {
        Self {
            sent: 0,
            admitted: 0,
            first_token: 0,
            finish: 0,
            generated: 0,
            preemptions: 0,
            replica: 0,
            refused: false,
            holds: NONE,
            holds_adapter: false,
            swapped: 0,
            host_copy: 0,
            ready: 0,
            priority: 0,
            slowest: 0,
        }
    }
}

/// A request in the system.
#[derive(Debug, Clone, Copy)]
pub(super) struct Live {
    pub(super) request: Request,
    pub(super) progress: Progress,
    /// Its place in the traffic.
    pub(super) number: u64,
    /// The next turn of its conversation.
    pub(super) next: u32,
}

/// All requests in the system. Numbers of finished ones are used again.
#[derive(Debug, Clone, Default)]
pub(super) struct Store {
    live: Vec<Live>,
    free: Vec<u32>,
    /// Draws of sequences that speculate.
    draws: Vec<Option<Draws>>,
}

impl Store {
    pub(super) fn insert(&mut self, request: Request, number: u64) -> u32 {
        let live = Live { request, progress: Progress::default(), number, next: NONE };
        match self.free.pop() {
            Some(id) => {
                self.live[id as usize] = live;
                if let Some(draws) = self.draws.get_mut(id as usize) {
                    *draws = None;
                }
                id
            }
            None => {
                self.live.push(live);
                self.live.len() as u32 - 1
            }
        }
    }

    pub(super) fn remove(&mut self, id: u32) -> Live {
        self.free.push(id);
        let gone = self.live[id as usize];
        // Nobody takes it for one that is still there.
        self.live[id as usize].number = u64::MAX;
        gone
    }

    pub(super) fn live(&self, id: u32) -> &Live {
        &self.live[id as usize]
    }

    /// The request of a number, which may have gone.
    pub(super) fn known(&self, id: u32) -> Option<&Live> {
        self.live.get(id as usize)
    }

    pub(super) fn live_mut(&mut self, id: u32) -> &mut Live {
        &mut self.live[id as usize]
    }

    /// The draws of a sequence, `new` of its place in the traffic at first.
    pub(super) fn draws(&mut self, id: u32, new: impl FnOnce(u64) -> Draws) -> &mut Draws {
        if self.draws.len() < self.live.len() {
            self.draws.resize(self.live.len(), None);
        }
        let number = self.live[id as usize].number;
        self.draws[id as usize].get_or_insert_with(|| new(number))
    }

    pub(super) fn request(&self, id: u32) -> &Request {
        &self.live[id as usize].request
    }

    pub(super) fn progress(&mut self, id: u32) -> &mut Progress {
        &mut self.live[id as usize].progress
    }

    /// Requests that it has had to hold at once.
    pub(super) fn most(&self) -> usize {
        self.live.len()
    }

    /// Requests in the system now.
    pub(super) fn len(&self) -> usize {
        self.live.len() - self.free.len()
    }
}
