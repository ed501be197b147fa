//! Fair scheduling: priorities that change, and who runs by them (FastSwitch, arXiv 2411.18424, section 2).

use super::Replica;
use crate::serving::store::Store;

/// A number that looks random, from a request's place in the traffic and the round (splitmix64).
fn draw(number: u64, round: u64) -> u64 {
    let mut z =
        ((number << 20) ^ round).wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Priority, request, lane and slot unless it waits, cache blocks that it needs.
type Candidate = (u64, u32, Option<(usize, u32)>, u64);

impl Replica<'_> {
    /// After so many steps all priorities are drawn anew: the highest that fit together run, the others are switched out.
    pub(super) fn change_priorities(&mut self, store: &mut Store, now: u64) {
        if !self.limits.rules.fair || self.priority_age < u64::from(self.limits.priority_steps) {
            return;
        }
        self.priority_age = 0;
        self.priority_round += 1;
        if self.waiting.is_empty() {
            return;
        }
        let mut all: Vec<Candidate> = Vec::new();
        let mut room: u64 = 0;
        let mut places: u64 = 0;
        for (index, lane) in self.lanes.iter().enumerate() {
            let shape = lane.shape();
            room += shape.capacity - shape.capacity / 50;
            places += u64::from(self.limits.max_sequences);
            for prompt in &lane.prompts {
                room = room.saturating_sub(shape.blocks(prompt.target) + prompt.fixed);
                places = places.saturating_sub(1);
            }
            for (slot, id, tokens) in lane.sequences() {
                let priority = draw(store.live(id).number, self.priority_round);
                let block = shape.block;
                all.push((
                    priority,
                    id,
                    Some((index, slot)),
                    shape.blocks(tokens + block) + shape.fixed(tokens),
                ));
            }
        }
        let shape = self.lanes[0].shape().clone();
        for &id in &self.waiting {
            let live = store.live(id);
            let tokens = live.request.input + live.progress.generated;
            all.push((
                draw(live.number, self.priority_round),
                id,
                None,
                shape.blocks(tokens + shape.block) + shape.fixed(tokens),
            ));
        }
        all.sort_unstable_by_key(|(priority, id, ..)| (std::cmp::Reverse(*priority), *id));
        self.waiting.clear();
        let mut out = Vec::new();
        for (priority, id, place, bytes) in all {
            store.progress(id).priority = priority;
            let runs = places > 0 && bytes <= room;
            if runs {
                places -= 1;
                room -= bytes;
            } else {
                // Nobody of lower rank may take the room that this one waits for.
                room = 0;
            }
            match place {
                None => self.waiting.push_back(id),
                Some((lane, slot)) if !runs => {
                    out.push((lane, slot));
                    self.waiting.push_back(id);
                }
                Some(_) => {}
            }
        }
        let order: Vec<u32> = self.waiting.iter().copied().collect();
        for (lane, slot) in out {
            let gone = self.lanes[lane].take(slot);
            // The places in the queue are given already.
            self.switch_out(lane, gone, store, now);
        }
        self.waiting = order.into();
    }
}
