//! One batch of an engine: decoding sequences, prompts in progress and their cache.
//!
//! All decoding sequences grow by one token a step. So lengths, block needs and ends are kept relative to a step
//! counter, and a step costs no work per sequence.

use psim_cost_models::serving::{KINDS, PromptChunk};
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Geometry of the cache of one lane.
#[derive(Debug, Clone)]
pub(super) struct CacheShape {
    /// Bytes that the lane may fill.
    pub(super) capacity: u64,
    /// Tokens of a block.
    pub(super) block: u32,
    /// Bytes of a block over all layers that keep everything.
    pub(super) block_bytes: u64,
    /// (window, bytes per token) of layers that keep a window.
    pub(super) windows: Vec<(u64, f64)>,
    /// Bytes of constant state of a sequence.
    pub(super) state: u64,
    /// What each attention kind reads at most.
    pub(super) reads: [Option<u64>; KINDS],
    /// Attention kinds.
    pub(super) kinds: usize,
}

impl CacheShape {
    /// Bytes of `tokens` in layers that keep everything, in whole blocks.
    pub(super) fn blocks(&self, tokens: u32) -> u64 {
        u64::from(tokens.div_ceil(self.block)) * self.block_bytes
    }

    /// Bytes beside the blocks of a sequence that reaches `tokens`.
    pub(super) fn fixed(&self, tokens: u32) -> u64 {
        let windows: f64 = self.windows.iter().map(|(w, b)| b * u64::from(tokens).min(*w) as f64).sum();
        self.state + windows as u64
    }
}

/// A decoding sequence.
#[derive(Debug, Clone, Copy)]
struct Slot {
    id: u32,
    /// Tokens in the cache at the first decoding step, the new one included.
    length: u32,
    joined: u64,
    ends: u64,
    /// Bytes beside growing blocks (windows, state, or everything where it is reserved).
    fixed: u64,
    /// Blocks are all set aside: growth needs nothing.
    reserved: bool,
    /// Tokens whose blocks belong to a shared prefix.
    shared: u32,
    live: bool,
    /// Which sequence of the slot this is.
    epoch: u32,
    /// Which of its events still hold.
    version: u32,
    /// The step at which it joined the batch, and its tokens before `joined`, where drafts have moved it on since.
    since: u64,
    before: u32,
}

/// A prompt being computed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Prompt {
    pub(super) id: u32,
    /// Tokens to be in the cache when it is done.
    pub(super) target: u32,
    /// Tokens there already.
    pub(super) done: u32,
    /// Tokens of answer left after the one that the prompt yields.
    pub(super) remaining: u32,
    pub(super) fixed: u64,
    pub(super) reserved: bool,
    pub(super) shared: u32,
}

/// A sequence leaving the batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Leaving {
    pub(super) id: u32,
    /// Decoding steps it has run.
    pub(super) steps: u32,
    /// Tokens of those steps: as many, but for drafts.
    pub(super) generated: u32,
    /// Tokens in its cache.
    pub(super) tokens: u32,
}

#[derive(Debug, Clone)]
pub(super) struct Lane {
    shape: CacheShape,
    pub(super) used: u64,
    /// Decoding steps so far.
    step: u64,
    slots: Vec<Slot>,
    free: Vec<u32>,
    order: Vec<(u32, u32)>,
    ends: BinaryHeap<Reverse<(u64, u32, u32)>>,
    /// Per kind with a limit: steps at which sequences reach it.
    crossings: BinaryHeap<Reverse<(u64, u32, u32, u8)>>,
    pub(super) decoding: u32,
    pub(super) context: [u64; KINDS],
    /// Sequences whose reads still grow, per kind.
    growing: [u32; KINDS],
    /// Sequences that need a block at a step, by step modulo block length.
    residues: Vec<u32>,
    pub(super) prompts: Vec<Prompt>,
    pub(super) chunks: Vec<PromptChunk>,
    /// Index into `prompts` of every chunk of this step.
    pub(super) chunk_of: Vec<usize>,
    /// Decoding takes part in this step.
    pub(super) decodes: bool,
    epoch: u32,
}

/// The part of a lane that a run of decoding steps changes.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Moving {
    pub(super) context: [u64; KINDS],
    pub(super) used: u64,
}

impl Lane {
    pub(super) fn new(shape: CacheShape) -> Self {
        let residues = vec![0; shape.block as usize];
        Self {
            shape,
            used: 0,
            step: 0,
            slots: Vec::new(),
            free: Vec::new(),
            order: Vec::new(),
            ends: BinaryHeap::new(),
            crossings: BinaryHeap::new(),
            decoding: 0,
            context: [0; KINDS],
            growing: [0; KINDS],
            residues,
            prompts: Vec::new(),
            chunks: Vec::new(),
            chunk_of: Vec::new(),
            decodes: false,
            epoch: 0,
        }
    }

    pub(super) fn shape(&self) -> &CacheShape {
        &self.shape
    }

    /// Requests in the batch.
    pub(super) fn running(&self) -> u32 {
        self.decoding + self.prompts.len() as u32
    }

    pub(super) fn free_bytes(&self) -> u64 {
        self.shape.capacity.saturating_sub(self.used)
    }

    fn residue(&self, length: u32, at: u64) -> usize {
        let block = u64::from(self.shape.block);
        ((u64::from(length) + block - at % block) % block) as usize
    }

    /// Bytes that sequences need at decoding step `ahead` steps from now.
    pub(super) fn need(&self, ahead: u64) -> u64 {
        let block = u64::from(self.shape.block);
        let index = (1 + block - (self.step + ahead) % block) % block;
        u64::from(self.residues[index as usize]) * self.shape.block_bytes
    }

    /// Steps until the next sequence ends or reaches a window; none while nothing decodes.
    pub(super) fn steps_to_event(&mut self) -> Option<u64> {
        if self.decoding == 0 {
            return None;
        }
        while let Some(Reverse((_, slot, epoch))) = self.ends.peek() {
            let s = self.slots[*slot as usize];
            if s.live && s.version == *epoch {
                break;
            }
            self.ends.pop();
        }
        while let Some(Reverse((_, slot, epoch, _))) = self.crossings.peek() {
            let s = self.slots[*slot as usize];
            if s.live && s.version == *epoch {
                break;
            }
            self.crossings.pop();
        }
        let end = self.ends.peek().map(|Reverse((at, ..))| *at);
        let cross = self.crossings.peek().map(|Reverse((at, ..))| *at);
        let next = match (end, cross) {
            (Some(a), Some(b)) => a.min(b),
            (Some(a), None) | (None, Some(a)) => a,
            (None, None) => return None,
        };
        Some(next.saturating_sub(self.step).max(1))
    }

    /// The state that decoding moves.
    pub(super) fn moving(&self) -> Moving {
        Moving { context: self.context, used: self.used }
    }

    /// One decoding step of the moving state.
    pub(super) fn advance(&self, m: &mut Moving) {
        for (context, growing) in m.context.iter_mut().zip(self.growing) {
            *context += u64::from(growing);
        }
    }

    /// What is read in the step after `steps` others, while nobody comes or goes.
    pub(super) fn ahead(&self, steps: u64) -> [u64; KINDS] {
        let mut context = self.context;
        for (context, growing) in context.iter_mut().zip(self.growing) {
            *context += steps * u64::from(growing);
        }
        context
    }

    /// By how much that grows with each step.
    pub(super) fn growth(&self) -> [u32; KINDS] {
        self.growing
    }

    /// Bytes that sequences need in the next `steps` decoding steps together.
    pub(super) fn needs(&self, steps: u64) -> u64 {
        let block = u64::from(self.shape.block);
        let round = self.growing_blocks() * (steps / block);
        round + (0..steps % block).map(|ahead| self.need(ahead)).sum::<u64>()
    }

    /// Bytes of the blocks that sequences need in as many steps as a block has tokens.
    fn growing_blocks(&self) -> u64 {
        self.residues.iter().map(|n| u64::from(*n)).sum::<u64>() * self.shape.block_bytes
    }

    /// `steps` decoding steps cannot fill the cache.
    pub(super) fn roomy(&self, steps: u64) -> bool {
        let rounds = steps / u64::from(self.shape.block) + 1;
        self.used.saturating_add(self.growing_blocks().saturating_mul(rounds)) <= self.shape.capacity
    }

    /// Takes over the state after `steps` decoding steps; sequences that end are handed to `leave`.
    pub(super) fn commit(&mut self, steps: u64, moved: Moving, leave: &mut Vec<Leaving>) {
        if self.decoding == 0 {
            return;
        }
        self.step += steps;
        self.context = moved.context;
        self.used = moved.used;
        while let Some(Reverse((at, slot, epoch, kind))) = self.crossings.peek().copied() {
            if at > self.step {
                break;
            }
            self.crossings.pop();
            let s = self.slots[slot as usize];
            if s.live && s.version == epoch {
                self.growing[usize::from(kind)] -= 1;
            }
        }
        while let Some(Reverse((at, slot, epoch))) = self.ends.peek().copied() {
            if at > self.step {
                break;
            }
            self.ends.pop();
            let s = self.slots[slot as usize];
            if s.live && s.version == epoch {
                leave.push(self.remove(slot));
            }
        }
    }

    /// Tokens that a sequence of `length` reads in a kind.
    fn reads(&self, kind: usize, length: u64) -> u64 {
        self.shape.reads[kind].map_or(length, |w| length.min(w))
    }

    /// A prompt is done and its sequence starts to decode.
    pub(super) fn join(&mut self, prompt: &Prompt) {
        let length = prompt.target + 1;
        let epoch = self.epoch;
        self.epoch += 1;
        let slot = Slot {
            id: prompt.id,
            length,
            joined: self.step,
            ends: self.step + u64::from(prompt.remaining),
            fixed: prompt.fixed,
            reserved: prompt.reserved,
            shared: prompt.shared,
            live: true,
            epoch,
            version: epoch,
            since: self.step,
            before: 0,
        };
        let index = match self.free.pop() {
            Some(i) => {
                self.slots[i as usize] = slot;
                i
            }
            None => {
                self.slots.push(slot);
                self.slots.len() as u32 - 1
            }
        };
        self.order.push((index, epoch));
        self.decoding += 1;
        self.count(index);
    }

    /// Counts a sequence from now on.
    fn count(&mut self, index: u32) {
        let slot = self.slots[index as usize];
        let (length, epoch) = (slot.length, slot.version);
        self.ends.push(Reverse((slot.ends, index, epoch)));
        for kind in 0..self.shape.kinds {
            self.context[kind] += self.reads(kind, u64::from(length));
            match self.shape.reads[kind] {
                Some(w) if u64::from(length) >= w => {}
                Some(w) => {
                    self.growing[kind] += 1;
                    let at = self.step + (w - u64::from(length));
                    if at < slot.ends {
                        self.crossings.push(Reverse((at, index, epoch, kind as u8)));
                    }
                }
                None => self.growing[kind] += 1,
            }
        }
        if !slot.reserved {
            let r = self.residue(length, self.step);
            self.residues[r] += 1;
        }
    }

    /// Undoes [`Lane::count`]; the sequence's tokens now, the new one included.
    fn uncount(&mut self, index: u32) -> u64 {
        let s = self.slots[index as usize];
        let steps = self.step - s.joined;
        let length = u64::from(s.length) + steps;
        for kind in 0..self.shape.kinds {
            self.context[kind] -= self.reads(kind, length);
            let still = match self.shape.reads[kind] {
                None => true,
                Some(w) => u64::from(s.length) < w && self.step < s.joined + (w - u64::from(s.length)),
            };
            // A crossing at or after the end was never scheduled, so the sequence still counts as growing.
            let unscheduled = self.shape.reads[kind]
                .is_some_and(|w| u64::from(s.length) < w && s.joined + (w - u64::from(s.length)) >= s.ends);
            if still || unscheduled {
                self.growing[kind] -= 1;
            }
        }
        if !s.reserved {
            let r = self.residue(s.length, s.joined);
            self.residues[r] -= 1;
        }
        length
    }

    /// Tokens that a sequence in a slot has yet to get.
    pub(super) fn left(&self, slot: u32) -> u32 {
        (self.slots[slot as usize].ends - self.step) as u32
    }

    /// A sequence takes `tokens` drafts on top of the token of the step that is done. It leaves where those were its last.
    pub(super) fn take_drafts(&mut self, slot: u32, tokens: u32) -> Option<Leaving> {
        let length = self.uncount(slot);
        let step = self.step;
        let s = &mut self.slots[slot as usize];
        s.before += (step - s.joined) as u32 + tokens;
        (s.length, s.joined) = (length as u32 + tokens, step);
        s.ends -= u64::from(tokens);
        s.version = self.epoch;
        self.epoch += 1;
        let s = *s;
        if !s.reserved {
            self.used += self.shape.blocks(s.length - 1) - self.shape.blocks(length as u32 - 1);
        }
        self.count(slot);
        (s.ends <= step).then(|| self.remove(slot))
    }

    fn remove(&mut self, index: u32) -> Leaving {
        let s = self.slots[index as usize];
        self.slots[index as usize].live = false;
        self.free.push(index);
        self.decoding -= 1;
        let length = self.uncount(index);
        if !s.reserved {
            let tokens = (length - 1) as u32;
            self.used -= self.shape.blocks(tokens) - self.shape.blocks(s.shared);
        }
        self.used -= s.fixed;
        if self.order.len() > 64 && self.order.len() > 4 * self.decoding as usize {
            let slots = &self.slots;
            self.order.retain(|(i, e)| slots[*i as usize].live && slots[*i as usize].epoch == *e);
        }
        Leaving {
            id: s.id,
            steps: (self.step - s.since) as u32,
            generated: s.before + (self.step - s.joined) as u32,
            tokens: (length - 1) as u32,
        }
    }

    /// The decoding sequences: slot, request, tokens in the cache.
    pub(super) fn sequences(&self) -> impl Iterator<Item = (u32, u32, u32)> + '_ {
        self.slots.iter().enumerate().filter(|(_, s)| s.live).map(|(index, s)| {
            let tokens = u64::from(s.length) + (self.step - s.joined) - 1;
            (index as u32, s.id, tokens as u32)
        })
    }

    /// Takes a sequence out of the batch.
    pub(super) fn take(&mut self, slot: u32) -> Leaving {
        self.remove(slot)
    }

    /// Gives back what a prompt has set aside.
    pub(super) fn drop_prompt(&mut self, prompt: &Prompt) {
        let growing = self.shape.blocks(prompt.target) - self.shape.blocks(prompt.shared);
        self.used -= if prompt.reserved { 0 } else { growing } + prompt.fixed;
    }

    /// Throws out the sequence that was admitted last; never a reserved one.
    pub(super) fn preempt(&mut self) -> Option<Leaving> {
        while let Some((index, epoch)) = self.order.pop() {
            let s = self.slots[index as usize];
            if s.live && s.epoch == epoch {
                return Some(self.remove(index));
            }
        }
        None
    }
}
