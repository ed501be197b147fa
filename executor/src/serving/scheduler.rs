//! Which tokens a step computes, and which pages they live in.

use super::{Batch, ServeRequest, ServeSettings};
use std::collections::VecDeque;

/// Where a request stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It has not arrived.
    Ahead,
    /// It waits for room.
    Waiting,
    /// It is in the batch.
    Running,
    /// It is answered.
    Done,
}

#[derive(Debug, Clone)]
struct Sequence {
    arrival: f64,
    /// Prompt, then what was generated.
    tokens: Vec<u32>,
    /// Tokens to generate in all.
    left: usize,
    /// Tokens whose keys and values are cached.
    cached: usize,
    pages: Vec<u32>,
    state: State,
    preemptions: u32,
    /// When a step first took it in.
    admitted: Option<f64>,
}

/// Continuous batching: sequences join and leave at every step.
#[derive(Debug, Clone)]
pub struct Scheduler {
    sequences: Vec<Sequence>,
    /// Requests that have not arrived, by arrival.
    ahead: VecDeque<usize>,
    waiting: VecDeque<usize>,
    /// In the order in which they were admitted.
    running: Vec<usize>,
    free: Vec<u32>,
    settings: ServeSettings,
    /// Seconds after the start, as last told.
    now: f64,
}

impl Scheduler {
    /// A scheduler with all pages free.
    pub fn new(requests: &[ServeRequest], settings: &ServeSettings) -> Self {
        let sequences: Vec<Sequence> = requests
            .iter()
            .map(|r| Sequence {
                arrival: r.arrival,
                tokens: r.prompt.clone(),
                left: r.output,
                cached: 0,
                pages: Vec::new(),
                state: State::Ahead,
                preemptions: 0,
                admitted: None,
            })
            .collect();
        let mut ahead: Vec<usize> = (0..requests.len()).collect();
        ahead.sort_by(|&a, &b| requests[a].arrival.total_cmp(&requests[b].arrival).then(a.cmp(&b)));
        Self {
            sequences,
            ahead: ahead.into(),
            waiting: VecDeque::new(),
            running: Vec::new(),
            free: (0..settings.pages as u32).rev().collect(),
            settings: *settings,
            now: 0.0,
        }
    }

    /// Takes in what has arrived by `now`, seconds.
    pub fn arrive(&mut self, now: f64) {
        self.now = now;
        while let Some(&next) = self.ahead.front() {
            if self.sequences[next].arrival > now {
                break;
            }
            self.ahead.pop_front();
            self.sequences[next].state = State::Waiting;
            self.waiting.push_back(next);
        }
    }

    /// When the next request arrives, of those that have not.
    pub fn next_arrival(&self) -> Option<f64> {
        self.ahead.front().map(|&next| self.sequences[next].arrival)
    }

    /// When the next request arrives, where there is nothing to do before.
    pub fn idle_until(&self) -> Option<f64> {
        let idle = self.waiting.is_empty() && self.running.is_empty();
        if idle { self.next_arrival() } else { None }
    }

    /// Every request is answered.
    pub fn finished(&self) -> bool {
        self.ahead.is_empty() && self.waiting.is_empty() && self.running.is_empty()
    }

    /// Pages that hold something.
    pub fn pages_in_use(&self) -> usize {
        self.settings.pages - self.free.len()
    }

    /// How often a request lost its pages.
    pub fn preemptions(&self, request: usize) -> u32 {
        self.sequences[request].preemptions
    }

    /// When a step first took a request in, seconds after the start; its arrival where none has.
    pub fn admitted(&self, request: usize) -> f64 {
        self.sequences[request].admitted.unwrap_or(self.sequences[request].arrival)
    }

    /// State of a request.
    pub fn state(&self, request: usize) -> State {
        self.sequences[request].state
    }

    /// Pages for `tokens` tokens of a sequence, if there are enough free ones.
    fn extend(&mut self, sequence: usize, tokens: usize) -> bool {
        let needed = tokens.div_ceil(self.settings.page).saturating_sub(self.sequences[sequence].pages.len());
        if needed > self.free.len() {
            return false;
        }
        let from = self.free.len() - needed;
        let taken = self.free.split_off(from);
        self.sequences[sequence].pages.extend(taken.into_iter().rev());
        true
    }

    fn give_back(&mut self, sequence: usize) {
        let pages = std::mem::take(&mut self.sequences[sequence].pages);
        self.free.extend(pages.into_iter().rev());
        self.sequences[sequence].cached = 0;
    }

    /// The youngest sequence loses its pages and waits at the front.
    fn preempt(&mut self) -> Option<usize> {
        let victim = self.running.pop()?;
        self.give_back(victim);
        self.sequences[victim].state = State::Waiting;
        self.sequences[victim].preemptions += 1;
        self.waiting.push_front(victim);
        Some(victim)
    }

    /// The next step's tokens: running sequences in the order of admission, then waiting ones while there is room.
    pub fn next_batch(&mut self) -> Batch {
        let mut budget = self.settings.tokens;
        let mut chosen: Vec<(usize, usize)> = Vec::new();
        let mut next = 0;
        while next < self.running.len() && budget > 0 {
            let sequence = self.running[next];
            let s = &self.sequences[sequence];
            let count = (s.tokens.len() - s.cached).min(budget);
            let end = s.cached + count;
            let mut lost = false;
            while !self.extend(sequence, end) {
                let victim = self.preempt();
                lost = victim.is_none_or(|v| v == sequence);
                if lost {
                    break;
                }
            }
            if lost {
                break;
            }
            chosen.push((sequence, count));
            budget -= count;
            next += 1;
        }
        // A victim of this step stands in front and finds no room: it needs more than it gave back.
        while budget > 0 && self.running.len() < self.settings.sequences {
            let Some(&sequence) = self.waiting.front() else { break };
            let count = self.sequences[sequence].tokens.len().min(budget);
            // Room for the whole sequence so far, so that an admission does not throw others out at once.
            let whole = self.sequences[sequence].tokens.len();
            if !self.extend(sequence, whole) {
                break;
            }
            self.waiting.pop_front();
            self.sequences[sequence].state = State::Running;
            self.sequences[sequence].admitted.get_or_insert(self.now);
            self.running.push(sequence);
            chosen.push((sequence, count));
            budget -= count;
        }
        self.lay_out(&chosen)
    }

    fn lay_out(&mut self, chosen: &[(usize, usize)]) -> Batch {
        let page = self.settings.page;
        let columns = chosen.iter().map(|&(s, _)| self.sequences[s].pages.len()).max().unwrap_or(0);
        let mut batch = Batch { columns, ..Batch::default() };
        for &(sequence, count) in chosen {
            let s = &mut self.sequences[sequence];
            if count == 1 && s.cached + 1 == s.tokens.len() && s.cached > 0 {
                batch.decode += 1;
            }
            for position in s.cached..s.cached + count {
                batch.tokens.push(s.tokens[position]);
                batch.positions.push(position as u32);
                batch.lengths.push(position as u32 + 1);
                batch.slots.push(s.pages[position / page] * page as u32 + (position % page) as u32);
                batch.tables.extend(&s.pages);
                batch.tables.extend(std::iter::repeat_n(0, columns - s.pages.len()));
            }
            s.cached += count;
            if s.cached == s.tokens.len() {
                batch.samples.push((batch.tokens.len() as u32 - 1, sequence as u32));
            }
        }
        batch
    }

    /// A sequence got a token.
    pub fn generated(&mut self, sequence: usize, token: u32) {
        let s = &mut self.sequences[sequence];
        s.tokens.push(token);
        s.left = s.left.saturating_sub(1);
        if s.left == 0 {
            s.state = State::Done;
            self.running.retain(|&r| r != sequence);
            self.give_back(sequence);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serving::Clock;

    fn settings(pages: usize, tokens: usize) -> ServeSettings {
        ServeSettings {
            tp: 1,
            replicas: 1,
            page: 4,
            pages,
            tokens,
            sequences: 8,
            seed: 1,
            scores: false,
            clock: Clock::Wall,
            warm_up: false,
        }
    }

    fn request(prompt: usize, output: usize) -> ServeRequest {
        ServeRequest { arrival: 0.0, prompt: vec![1; prompt], output }
    }

    /// Runs to the end; every page is used by one sequence at a time, and every token is computed in order.
    fn drive(requests: &[ServeRequest], settings: &ServeSettings) -> (usize, u32) {
        let mut scheduler = Scheduler::new(requests, settings);
        scheduler.arrive(0.0);
        let mut steps = 0;
        while !scheduler.finished() {
            let batch = scheduler.next_batch();
            assert!(!batch.is_empty() && batch.tokens.len() <= settings.tokens);
            let mut owners = vec![None; settings.pages];
            for (index, sequence) in scheduler.sequences.iter().enumerate() {
                for &page in &sequence.pages {
                    assert_eq!(owners[page as usize].replace(index), None);
                }
            }
            assert_eq!(owners.iter().filter(|o| o.is_none()).count(), scheduler.free.len());
            for sequence in batch.sampled().collect::<Vec<_>>() {
                scheduler.generated(sequence, 2);
            }
            steps += 1;
            assert!(steps < 10_000, "no progress");
        }
        assert_eq!(scheduler.pages_in_use(), 0);
        for (sequence, request) in scheduler.sequences.iter().zip(requests) {
            assert_eq!(sequence.tokens.len(), request.prompt.len() + request.output);
        }
        (steps, (0..requests.len()).map(|i| scheduler.preemptions(i)).sum())
    }

    #[test]
    fn all_are_served_with_room_to_spare() {
        let requests = [request(9, 5), request(3, 7), request(6, 1)];
        assert_eq!(drive(&requests, &settings(20, 64)), (7, 0));
    }

    #[test]
    fn prompts_are_cut_to_the_budget() {
        let mut scheduler = Scheduler::new(&[request(10, 2)], &settings(4, 4));
        scheduler.arrive(0.0);
        let sizes: Vec<usize> = (0..3).map(|_| scheduler.next_batch().tokens.len()).collect();
        assert_eq!(sizes, [4, 4, 2]);
    }

    #[test]
    fn a_small_cache_preempts_and_still_serves() {
        let requests: Vec<ServeRequest> = (0..6).map(|i| request(3 + i, 20 - i)).collect();
        let (_, preemptions) = drive(&requests, &settings(9, 8));
        assert!(preemptions > 0);
        drive(&[request(1, 23), request(20, 4)], &settings(6, 3));
    }
}
