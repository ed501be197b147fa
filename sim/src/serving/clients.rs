//! Who sends requests and when: an open stream, the clients of a closed loop, the later turns of conversations; and how
//! many requests are in the system meanwhile.

use super::store::{Live, NONE, Store};
use psim_cost_models::serving::StepCost;
use psim_models::serving::Request;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::iter::Peekable;

/// The way from clients to engines: a constant time from a client and back to the first token, and front ends, one to an
/// engine, that serve one request after another. In picoseconds.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct FrontEnd {
    delay: u64,
    /// Time of a front end for one request, and the part of it that keeps the next request waiting.
    one: u64,
    busy: u64,
    free: u64,
}

impl FrontEnd {
    /// Front ends of so many engines.
    pub(super) fn of(cost: &StepCost, engines: u32) -> Self {
        let p = cost.parameters();
        let one = (p.front_us * 1e6) as u64;
        Self { delay: (p.ttft_ms * 1e9) as u64, one, busy: one / u64::from(engines.max(1)), free: 0 }
    }

    /// When a request that leaves its client at `at` reaches an engine.
    fn reaches(&self, at: u64) -> u64 {
        at.max(self.free) + self.one + self.delay
    }

    /// It does.
    fn pass(&mut self, at: u64) {
        self.free = at.max(self.free) + self.busy;
    }
}

/// Requests in the system over time.
#[derive(Debug, Clone, Copy, Default)]
struct Population {
    now: u32,
    /// Requests times picoseconds.
    integral: u128,
    last_change: u64,
}

impl Population {
    /// Changes by one at `at`, which may lie before the last change: requests are seen one delay after they were sent.
    fn change(&mut self, at: u64, by: i32) {
        if at >= self.last_change {
            self.integral += u128::from(self.now) * u128::from(at - self.last_change);
            self.last_change = at;
        } else {
            let late = u128::from(self.last_change - at);
            self.integral = if by > 0 { self.integral + late } else { self.integral.saturating_sub(late) };
        }
        self.now = self.now.saturating_add_signed(by);
    }
}

/// The clients of a run.
pub(super) struct Clients<'a> {
    source: Peekable<&'a mut dyn Iterator<Item = Request>>,
    /// Each client waits for its answer before it sends again.
    closed: bool,
    /// Place in the traffic of the next request that is taken.
    next: u64,
    /// Of clients of a closed loop or of a conversation, not at a front end yet: (when it leaves its client, sequence,
    /// request). A turn that is thought about for a while keeps no front end from others.
    sent: BinaryHeap<Reverse<(u64, u64, u32)>>,
    sequence: u64,
    front: FrontEnd,
    population: Population,
    backlog: u32,
}

impl<'a> Clients<'a> {
    /// `clients` of a closed loop send their first request at once; without a number the stream is open.
    pub(super) fn new(
        source: &'a mut dyn Iterator<Item = Request>,
        clients: Option<u32>,
        front: FrontEnd,
        store: &mut Store,
    ) -> Self {
        let mut made = Self {
            source: source.peekable(),
            closed: clients.is_some(),
            next: 0,
            sent: BinaryHeap::new(),
            sequence: 0,
            front,
            population: Population::default(),
            backlog: 0,
        };
        for _ in 0..clients.unwrap_or(0) {
            made.send_next(store, 0);
        }
        made
    }

    /// Takes the next request from the source, with the later turns of its conversation.
    fn take(&mut self, store: &mut Store) -> Option<u32> {
        let request = self.source.next()?;
        let first = store.insert(request, self.next);
        self.next += 1;
        let mut last = first;
        while request.session > 0
            && let Some(turn) = self.source.next_if(|r| r.turn > 0 && r.session == request.session)
        {
            let id = store.insert(turn, self.next);
            self.next += 1;
            store.live_mut(last).next = id;
            last = id;
        }
        Some(first)
    }

    /// A request leaves its client at `at`.
    fn send(&mut self, store: &mut Store, id: u32, at: u64) {
        store.progress(id).sent = at;
        self.sent.push(Reverse((at, self.sequence, id)));
        self.sequence += 1;
    }

    /// A client of a closed loop sends the next request, if any is left.
    fn send_next(&mut self, store: &mut Store, now: u64) {
        if let Some(id) = self.take(store) {
            let earliest = store.request(id).arrival.0;
            self.send(store, id, now.max(earliest));
        }
    }

    /// When the next request leaves its client, and whether that is one of a loop or a conversation.
    fn next(&mut self) -> Option<(u64, bool)> {
        let sent = self.sent.peek().map(|Reverse((at, ..))| (*at, true));
        if self.closed {
            return sent;
        }
        let open = self.source.peek().map(|r| (r.arrival.0, false));
        match (sent, open) {
            (Some(a), Some(b)) => Some(if a.0 <= b.0 { a } else { b }),
            (a, b) => a.or(b),
        }
    }

    /// When the next request arrives at an engine.
    pub(super) fn arrival(&mut self) -> Option<u64> {
        self.next().map(|(at, _)| self.front.reaches(at))
    }

    /// The next request that arrives at `now`.
    pub(super) fn arrive(&mut self, store: &mut Store, now: u64) -> Option<u32> {
        let (at, sent) = self.next().filter(|(at, _)| self.front.reaches(*at) == now)?;
        let id = if sent {
            self.sent.pop().map(|Reverse((.., id))| id)?
        } else {
            let id = self.take(store)?;
            store.progress(id).sent = at;
            id
        };
        self.front.pass(at);
        self.population.change(store.live(id).progress.sent, 1);
        Some(id)
    }

    /// Notes how many requests are in the system once the last of the traffic has come.
    pub(super) fn note_backlog(&mut self) {
        if self.backlog == 0 && self.source.peek().is_none() {
            self.backlog = self.population.now;
        }
    }

    /// A request whose conversation goes on with `next` has its answer: the client sends its next turn, or, in a closed
    /// loop, another request.
    pub(super) fn answered(&mut self, store: &mut Store, next: u32, now: u64) {
        self.population.change(now, -1);
        if next != NONE {
            let think = store.request(next).think.0;
            self.send(store, next, now + think);
        } else if self.closed {
            self.send_next(store, now);
        }
    }

    /// A request that can never fit, and the later turns of its conversation, which are longer. What was known of each,
    /// by its number in the store.
    pub(super) fn refuse(&mut self, store: &mut Store, first: u32, now: u64) -> Vec<(u32, Live)> {
        let mut refused = Vec::new();
        let mut id = first;
        while id != NONE {
            let progress = store.progress(id);
            progress.refused = true;
            progress.sent = if id == first { progress.sent } else { now };
            (progress.first_token, progress.finish) = (now, now);
            let live = store.remove(id);
            refused.push((id, live));
            id = live.next;
        }
        self.answered(store, NONE, now);
        refused
    }

    /// Nobody has sent anything and nobody will of their own accord.
    pub(super) fn none_left(&mut self) -> bool {
        self.next().is_none()
    }

    /// Requests in the system now.
    pub(super) fn in_system(&self) -> u32 {
        self.population.now
    }

    /// Requests in the system when the last of the traffic had come.
    pub(super) fn backlog(&self) -> u32 {
        self.backlog
    }

    /// Requests in the system summed over time.
    pub(super) fn request_seconds(&self) -> f64 {
        self.population.integral as f64 * 1e-12
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_sent_before_it_was_seen_counts_from_then() {
        let mut p = Population::default();
        p.change(10, 1);
        p.change(30, 1);
        // Sent at 20, seen only now.
        p.change(20, 1);
        assert_eq!((p.now, p.integral), (3, 20 + 10));
        p.change(40, -1);
        assert_eq!((p.now, p.integral), (2, 30 + 3 * 10));
        // Left at 35, seen only now.
        p.change(35, -1);
        assert_eq!((p.now, p.integral), (1, 60 - 5));
    }

    #[test]
    fn a_turn_that_is_thought_about_keeps_no_front_end_from_others() {
        let at = |arrival: u64, session: u32, turn: u16| Request {
            arrival: psim_hardware::Time(arrival),
            think: psim_hardware::Time(if turn > 0 { 1_000_000 } else { 0 }),
            session,
            turn,
            input: 1,
            output: 1,
            ..Request::default()
        };
        let mut source = [at(0, 1, 0), at(0, 1, 1), at(2_000, 2, 0)].into_iter();
        let mut store = Store::default();
        let front = FrontEnd { delay: 7, one: 3, busy: 3, free: 0 };
        let mut clients = Clients::new(&mut source, None, front, &mut store);
        assert_eq!(clients.arrival(), Some(10));
        let first = clients.arrive(&mut store, 10).unwrap();
        let next = store.live(first).next;
        // Answered at 1,000; the next turn leaves its client at 1,001,000. Meanwhile another conversation begins.
        clients.answered(&mut store, next, 1_000);
        assert_eq!(clients.arrival(), Some(2_010));
        assert!(clients.arrive(&mut store, 2_010).is_some());
        assert_eq!(clients.arrival(), Some(1_001_010));
        assert_eq!(clients.arrive(&mut store, 1_001_010), Some(next));
        assert_eq!(clients.arrival(), None);
    }
}
