//! What a finished step has done: tokens, prompts that are done, sequences that leave, prefixes that stay.

use super::{Pending, Replica};
use crate::serving::histogram::Histogram;
use crate::serving::lane::Prompt;
use crate::serving::prefix::{path, shared};
use crate::serving::store::{NONE, Store};

impl Replica<'_> {
    /// Books the pending steps. Requests that are done are added to `finished`.
    pub(in crate::serving) fn finish(&mut self, store: &mut Store, finished: &mut Vec<u32>) {
        let Some(p) = self.pending.take() else { return };
        self.idle_since = p.end;
        self.extra_seconds = 0.0;
        self.priority_age += p.steps;
        self.sums.steps += p.steps;
        self.count_waits(p.steps, p.decode_only);
        self.sums.busy += p.end - p.start;
        self.book_tuning();
        for (bucket, tokens) in self.gaps.drain(..) {
            self.sums.gaps.add(bucket, tokens);
        }
        for index in 0..self.lanes.len() {
            if self.lanes[index].decodes && self.lanes[index].decoding > 0 {
                self.book_first_gap(index, p);
                self.draw_rounds(index, store);
                self.sums.generated += p.steps * u64::from(self.lanes[index].decoding);
                let moved = self.moving[index];
                self.log_ends(index);
                let mut leaving = std::mem::take(&mut self.leaving);
                self.lanes[index].commit(p.steps, moved, &mut leaving);
                for (slot, drafts) in self.drafted.drain(..) {
                    leaving.extend(self.lanes[index].take_drafts(slot, drafts));
                }
                for gone in leaving.drain(..) {
                    self.follow_pace(index, &gone, store);
                    let progress = store.progress(gone.id);
                    progress.generated += gone.generated;
                    progress.finish = p.end;
                    self.keep_conversation(index, gone.id, gone.tokens, store, p.end);
                    self.let_go(index, gone.id, store, p.end);
                    finished.push(gone.id);
                }
                self.leaving = leaving;
            }
            self.book_prompts(index, p.end, store, finished);
        }
    }

    /// How many drafts each sequence of a lane takes from the round that has ended.
    fn draw_rounds(&mut self, index: usize, store: &mut Store) {
        let Some(speculation) = self.limits.speculation else { return };
        let lane = &self.lanes[index];
        for (slot, id, _) in lane.sequences() {
            let came = speculation.taken(store.draws(id, |number| speculation.draws(number)));
            let drafts = came.min(lane.left(slot)) - 1;
            self.sums.rounds += 1;
            self.sums.round_tokens += u64::from(came);
            if drafts > 0 {
                self.drafted.push((slot, drafts));
                // Tokens of one round come together.
                self.sums.gaps.add(Histogram::bucket(0), u64::from(drafts));
                self.sums.generated += u64::from(drafts);
            }
        }
    }

    /// The first decoding step of a run: sequences that joined since the last one count from their first token.
    fn book_first_gap(&mut self, index: usize, p: Pending) {
        let lane = &self.lanes[index];
        let first_end = p.first_end;
        let mut joined = 0;
        for (since, count) in self.fresh[index].drain(..) {
            let count = count.min(lane.decoding - joined);
            joined += count;
            self.sums.gaps.add(Histogram::bucket(first_end - since.min(first_end)), u64::from(count));
        }
        let old = u64::from(lane.decoding - joined);
        if old > 0 {
            let since = self.last_decode[index].max(1).min(first_end);
            self.sums.gaps.add(Histogram::bucket(first_end - since), old);
        }
        self.last_decode[index] = p.end;
    }

    fn book_prompts(&mut self, index: usize, end: u64, store: &mut Store, finished: &mut Vec<u32>) {
        let mut chunks = std::mem::take(&mut self.lanes[index].chunks);
        let mut chunk_of = std::mem::take(&mut self.lanes[index].chunk_of);
        let mut done = Vec::new();
        for (chunk, &at) in chunks.iter().zip(&chunk_of) {
            self.sums.computed += u64::from(chunk.tokens);
            let prompt = &mut self.lanes[index].prompts[at];
            prompt.done += chunk.tokens;
            if prompt.done == prompt.target {
                done.push(at);
            }
        }
        for &at in &done {
            let mut prompt = self.lanes[index].prompts[at];
            self.keep_prefix(index, &mut prompt, store, end);
            let progress = store.progress(prompt.id);
            if progress.generated > 0 {
                // Computed again after it was thrown out: the gap counts from its last token.
                self.sums.gaps.add(Histogram::bucket(end - progress.finish.min(end)), 1);
            }
            progress.generated += 1;
            self.sums.generated += 1;
            if progress.first_token == 0 {
                progress.first_token = end;
            }
            if prompt.remaining > 0 {
                self.lanes[index].join(&prompt);
                match self.fresh[index].last_mut() {
                    Some((time, count)) if *time == end => *count += 1,
                    _ => self.fresh[index].push((end, 1)),
                }
            } else {
                progress.finish = end;
                self.lanes[index].drop_prompt(&prompt);
                self.keep_conversation(index, prompt.id, prompt.target, store, end);
                self.let_go(index, prompt.id, store, end);
                finished.push(prompt.id);
            }
        }
        if !done.is_empty() {
            let mut at = 0;
            self.lanes[index].prompts.retain(|_| {
                at += 1;
                !done.contains(&(at - 1))
            });
        }
        // Give the buffers back.
        chunks.clear();
        chunk_of.clear();
        self.lanes[index].chunks = chunks;
        self.lanes[index].chunk_of = chunk_of;
    }

    /// The shared prefix of a prompt that is done stays in the cache for the next one.
    fn keep_prefix(&mut self, index: usize, prompt: &mut Prompt, store: &mut Store, now: u64) {
        let request = *store.request(prompt.id);
        let block = self.lanes[index].shape().block;
        let tokens = request.prefix.min(prompt.target) / block * block;
        if !self.limits.rules.prefix_cache || prompt.reserved || tokens <= prompt.shared {
            return;
        }
        if self.limits.prefixes.has(request.prefix_group) {
            return self.keep_places(index, prompt, tokens, store, now);
        }
        if prompt.shared > 0 {
            return;
        }
        let stretch = shared(&self.limits.prefixes, &request, request.prefix);
        // Another request has put it there meanwhile: this one keeps its own.
        if self.prefixes[index].find(stretch.clone(), tokens).tokens > 0 {
            return;
        }
        let (added, node) = self.prefixes[index].insert(stretch, tokens, now);
        if node == NONE || added != tokens {
            return;
        }
        self.prefixes[index].hold(node);
        prompt.shared = tokens;
        store.progress(prompt.id).holds = node;
    }

    /// The same where prefixes branch: places that are not there yet take over the sequence's blocks; of those that
    /// another request has put there meanwhile the sequence gives its own copy back.
    fn keep_places(&mut self, index: usize, prompt: &mut Prompt, tokens: u32, store: &mut Store, now: u64) {
        let request = *store.request(prompt.id);
        let places = shared(&self.limits.prefixes, &request, tokens);
        let tree = &mut self.prefixes[index];
        let (added, node) = tree.insert(places.clone(), tokens, now);
        let there = tree.find(places, tokens).tokens;
        if node == NONE || there <= prompt.shared {
            return;
        }
        let held = std::mem::replace(&mut store.progress(prompt.id).holds, node);
        tree.hold(node);
        if held != NONE {
            tree.release(held, now);
        }
        let lane = &mut self.lanes[index];
        let shape = lane.shape();
        let own = shape.blocks(there) - shape.blocks(prompt.shared);
        let block = u64::from(shape.block);
        let gained = u64::from(added) / block * shape.block_bytes;
        lane.used = lane.used + gained - own;
        prompt.shared = there;
    }

    /// What a conversation has said so far stays for its next turn. The sequence has just given its blocks back. A decode
    /// instance keeps nothing: the prompt of the next turn is computed elsewhere.
    fn keep_conversation(&mut self, index: usize, id: u32, tokens: u32, store: &mut Store, now: u64) {
        let live = store.live(id);
        let kept = self.limits.rules.prefix_cache && !self.limits.rules.reserve_whole && !self.limits.fed;
        if !kept || live.next == NONE {
            return;
        }
        let (added, _) =
            self.prefixes[index].insert(path(&self.limits.prefixes, &live.request, tokens), tokens, now);
        let lane = &mut self.lanes[index];
        lane.used += u64::from(added) / u64::from(lane.shape().block) * lane.shape().block_bytes;
    }
}
