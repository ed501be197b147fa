//! Discrete-event kernel: a clock and a queue of pending events.
//!
//! Time is integer picoseconds and events at the same time come out in the order in which they were scheduled, so a
//! simulation gives the same result bit for bit on every machine.
//!
//! The queue is a 4-ary heap of `u128` keys (time in the high 64 bits, then a 40-bit sequence number, then the slot
//! of the event), so that four children share one cache line and one comparison decides. A popped root leaves a hole
//! that the next scheduled event fills in a single pass: in the usual rhythm of "handle one event, schedule one" that
//! saves half of the work. Calendar queues and ladder queues are faster for millions of pending events, but a step
//! or a serving run has hundreds to thousands. Cancelling marks the slot; the entry is dropped when it surfaces.
//!
//! ```
//! use psim_hardware::Time;
//! use psim_sim::engine::Engine;
//!
//! let mut engine = Engine::new();
//! engine.schedule(Time(20), "late").unwrap();
//! let doomed = engine.schedule(Time(5), "never").unwrap();
//! engine.schedule(Time(10), "early").unwrap();
//! engine.cancel(doomed);
//! assert_eq!(engine.next(), Some((Time(10), "early")));
//! assert_eq!(engine.now(), Time(10));
//! assert_eq!(engine.next(), Some((Time(20), "late")));
//! assert_eq!(engine.next(), None);
//! ```

use psim_hardware::Time;

const SLOT_BITS: u32 = 24;
const SLOT_MASK: u128 = (1 << SLOT_BITS) - 1;
const SEQUENCE_LIMIT: u64 = 1 << (64 - SLOT_BITS);
const ARITY: usize = 4;

/// Why an event could not be scheduled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    /// The time has passed.
    #[error("an event at {at:?} cannot be scheduled at {now:?}: the time has passed")]
    Past {
        /// Time asked for.
        at: Time,
        /// Time of the clock.
        now: Time,
    },
    /// 2^24 events are pending.
    #[error("more than 16,777,216 events are pending")]
    Full,
    /// 2^40 events were scheduled.
    #[error("more than 1,099,511,627,776 events were scheduled in one simulation")]
    Exhausted,
}

/// Name of a scheduled event, to cancel it with. Stays valid, and harmless, after the event has happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct EventKey {
    slot: u32,
    generation: u32,
}

#[derive(Debug, Clone, Copy)]
struct Slot<E> {
    /// Counts the events that have lived here; a key of an earlier one does not match.
    generation: u32,
    /// Nothing once cancelled.
    event: Option<E>,
}

/// Clock and pending events of type `E` (a small `Copy` enum or an index).
#[derive(Debug, Clone)]
pub struct Engine<E> {
    now: Time,
    heap: Vec<u128>,
    /// `heap[0]` has been taken out and not yet been filled again.
    hole: bool,
    slots: Vec<Slot<E>>,
    free: Vec<u32>,
    sequence: u64,
    pending: usize,
}

impl<E: Copy> Default for Engine<E> {
    fn default() -> Self {
        Self {
            now: Time::ZERO,
            heap: Vec::new(),
            hole: false,
            slots: Vec::new(),
            free: Vec::new(),
            sequence: 0,
            pending: 0,
        }
    }
}

impl<E: Copy> Engine<E> {
    /// An engine at time zero without events.
    pub fn new() -> Self {
        Self::default()
    }

    /// Back to time zero without events, keeping the memory.
    pub fn clear(&mut self) {
        self.now = Time::ZERO;
        self.heap.clear();
        self.hole = false;
        self.slots.clear();
        self.free.clear();
        self.sequence = 0;
        self.pending = 0;
    }

    /// Time of the event that was handled last.
    pub fn now(&self) -> Time {
        self.now
    }

    /// Events that are still to happen (cancelled ones do not count).
    pub fn pending(&self) -> usize {
        self.pending
    }

    /// Schedules `event` at `at`, after all events scheduled for that time before.
    ///
    /// # Errors
    /// The time has passed, or a capacity of the engine is exceeded.
    pub fn schedule(&mut self, at: Time, event: E) -> Result<EventKey, EngineError> {
        if at < self.now {
            return Err(EngineError::Past { at, now: self.now });
        }
        if self.sequence == SEQUENCE_LIMIT {
            return Err(EngineError::Exhausted);
        }
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None if self.slots.len() as u128 > SLOT_MASK => return Err(EngineError::Full),
            None => {
                self.slots.push(Slot { generation: 0, event: None });
                self.slots.len() as u32 - 1
            }
        };
        let entry = &mut self.slots[slot as usize];
        entry.event = Some(event);
        let key = (u128::from(at.0) << 64) | (u128::from(self.sequence) << SLOT_BITS) | u128::from(slot);
        self.sequence += 1;
        self.pending += 1;
        let generation = entry.generation;
        if self.hole {
            self.hole = false;
            self.sift_down(key);
        } else {
            self.heap.push(key);
            self.sift_up(key);
        }
        Ok(EventKey { slot, generation })
    }

    /// Schedules `event` after `delay`.
    ///
    /// # Errors
    /// A capacity of the engine is exceeded.
    pub fn schedule_after(&mut self, delay: Time, event: E) -> Result<EventKey, EngineError> {
        self.schedule(self.now + delay, event)
    }

    /// Takes a pending event back; nothing if it has happened or was cancelled before.
    pub fn cancel(&mut self, key: EventKey) -> Option<E> {
        let slot = self.slots.get_mut(key.slot as usize)?;
        if slot.generation != key.generation {
            return None;
        }
        let event = slot.event.take()?;
        self.pending -= 1;
        Some(event)
    }

    /// Advances the clock to the next event and takes it out.
    #[expect(
        clippy::should_implement_trait,
        reason = "an iterator would borrow the engine while events are handled"
    )]
    pub fn next(&mut self) -> Option<(Time, E)> {
        loop {
            self.close_hole();
            let key = *self.heap.first()?;
            self.hole = true;
            let slot = (key & SLOT_MASK) as u32;
            let entry = &mut self.slots[slot as usize];
            entry.generation = entry.generation.wrapping_add(1);
            self.free.push(slot);
            if let Some(event) = entry.event.take() {
                self.pending -= 1;
                self.now = Time((key >> 64) as u64);
                return Some((self.now, event));
            }
        }
    }

    /// Time of the next event, without taking it.
    pub fn peek(&mut self) -> Option<Time> {
        loop {
            self.close_hole();
            let key = *self.heap.first()?;
            let slot = (key & SLOT_MASK) as u32;
            if self.slots[slot as usize].event.is_some() {
                return Some(Time((key >> 64) as u64));
            }
            let entry = &mut self.slots[slot as usize];
            entry.generation = entry.generation.wrapping_add(1);
            self.free.push(slot);
            self.hole = true;
        }
    }

    /// Fills the root with the last entry, if the root is empty.
    fn close_hole(&mut self) {
        if self.hole {
            self.hole = false;
            if let Some(last) = self.heap.pop()
                && !self.heap.is_empty()
            {
                self.sift_down(last);
            }
        }
    }

    /// Places `key` starting from an empty root.
    fn sift_down(&mut self, key: u128) {
        let heap = self.heap.as_mut_slice();
        let mut at = 0;
        loop {
            let first = at * ARITY + 1;
            let (child, least) = match heap.get(first..) {
                Some([a, b, c, d, ..]) => {
                    let (left, l) = if b < a { (1, *b) } else { (0, *a) };
                    let (right, r) = if d < c { (3, *d) } else { (2, *c) };
                    if r < l { (first + right, r) } else { (first + left, l) }
                }
                Some(few) => match few.iter().enumerate().min_by_key(|(_, k)| **k) {
                    Some((i, k)) => (first + i, *k),
                    None => break,
                },
                None => break,
            };
            if key < least {
                break;
            }
            heap[at] = least;
            at = child;
        }
        heap[at] = key;
    }

    /// Places `key` starting from an empty last entry.
    fn sift_up(&mut self, key: u128) {
        let heap = self.heap.as_mut_slice();
        let mut at = heap.len() - 1;
        while at > 0 {
            let parent = (at - 1) / ARITY;
            if heap[parent] <= key {
                break;
            }
            heap[at] = heap[parent];
            at = parent;
        }
        heap[at] = key;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_at_one_time_keep_their_order() {
        let mut engine = Engine::new();
        for i in 0..100_u32 {
            engine.schedule(Time(u64::from(i % 3)), i).unwrap();
        }
        let mut seen = Vec::new();
        while let Some((time, event)) = engine.next() {
            seen.push((time.0, event));
        }
        assert!(seen.is_sorted());
        assert_eq!(seen.len(), 100);
    }

    #[test]
    fn the_past_is_refused() {
        let mut engine = Engine::new();
        engine.schedule(Time(7), ()).unwrap();
        engine.next();
        assert_eq!(engine.schedule(Time(6), ()), Err(EngineError::Past { at: Time(6), now: Time(7) }));
        assert!(engine.schedule(Time(7), ()).is_ok());
    }

    #[test]
    fn a_key_of_an_earlier_event_in_the_same_slot_cancels_nothing() {
        let mut engine = Engine::new();
        let old = engine.schedule(Time(1), 'a').unwrap();
        assert_eq!(engine.next(), Some((Time(1), 'a')));
        let new = engine.schedule(Time(2), 'b').unwrap();
        assert_eq!(old.slot, new.slot);
        assert_eq!(engine.cancel(old), None);
        assert_eq!(engine.cancel(new), Some('b'));
        assert_eq!(engine.cancel(new), None);
        assert_eq!((engine.pending(), engine.peek(), engine.next()), (0, None, None));
    }
}
