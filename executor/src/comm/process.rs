//! Ranks as processes: tagged messages over a [`Wire`] that carries bytes between them.
//!
//! A wire keeps the order of the messages between two ranks and never blocks a sender; tags, long messages, reports and
//! the end of a failed run are the same for every wire, and live here.

use super::{Tag, Transport};
use crate::error::{ExecutorError, Result};
use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// Carries bytes between processes.
pub trait Wire {
    /// This rank.
    fn rank(&self) -> usize;
    /// Ranks in all.
    fn world(&self) -> usize;
    /// Hands over a message to another rank; does not wait for it to arrive.
    ///
    /// # Errors
    /// When the wire is broken.
    fn post(&self, to: usize, message: Vec<u8>) -> Result<()>;
    /// The next message from anybody, if one has arrived, with its sender; also moves pending messages on.
    ///
    /// # Errors
    /// When the wire is broken.
    fn poll(&self) -> Result<Option<(usize, Vec<u8>)>>;
    /// Waits until every posted message has left.
    ///
    /// # Errors
    /// When the wire is broken.
    fn flush(&self) -> Result<()>;
}

/// Name of a message on the wire: kind and two numbers.
type Key = [u32; 3];

/// A rank's report after a run.
const REPORT: Key = [4, 0, 0];
/// A rank has failed; the message is its reason.
const STOPPED: Key = [5, 0, 0];
/// Bytes of the header: key, and whether another part follows.
const HEADER: usize = 16;
/// Longest message on the wire; longer data goes in parts (MPI counts bytes in 31 bits).
const LONGEST: usize = 1 << 30;
/// Polls without result before a rank sleeps between polls, so that ranks that share a core let each other work.
const EAGER_POLLS: u32 = 200;
/// How long it sleeps.
const NAP: Duration = Duration::from_micros(50);

fn key(tag: Tag) -> Key {
    match tag {
        Tag::Collective(dimension) => [0, dimension as u32, 0],
        Tag::Bucket(bucket) => [1, bucket, 0],
        Tag::Forward(chunk, micro_batch) => [2, chunk, micro_batch],
        Tag::Backward(chunk, micro_batch) => [3, chunk, micro_batch],
        Tag::Shard(bucket) => [6, bucket, 0],
    }
}

#[derive(Debug, Default)]
struct Inbox {
    messages: BTreeMap<(usize, Key), VecDeque<Vec<u8>>>,
    /// Parts of a message whose end has not arrived.
    started: BTreeMap<(usize, Key), Vec<u8>>,
    stopped: Option<String>,
}

/// A transport between processes.
#[derive(Debug)]
pub struct Process<W: Wire> {
    wire: W,
    inbox: RefCell<Inbox>,
}

impl<W: Wire> Process<W> {
    /// Tagged messages over `wire`.
    pub fn new(wire: W) -> Self {
        Self { wire, inbox: RefCell::default() }
    }

    /// Ranks that were started.
    pub fn world(&self) -> usize {
        self.wire.world()
    }

    fn put(&self, to: usize, key: Key, bytes: Vec<u8>) -> Result<()> {
        if to == self.wire.rank() {
            self.inbox.borrow_mut().messages.entry((to, key)).or_default().push_back(bytes);
            return Ok(());
        }
        let mut parts = bytes.chunks(LONGEST).peekable();
        if parts.peek().is_none() {
            return self.wire.post(to, message(key, false, &[]));
        }
        while let Some(part) = parts.next() {
            self.wire.post(to, message(key, parts.peek().is_some(), part))?;
        }
        Ok(())
    }

    fn take(&self, from: usize, key: Key) -> Result<Vec<u8>> {
        let mut fruitless = 0_u32;
        loop {
            if let Some(found) =
                self.inbox.borrow_mut().messages.get_mut(&(from, key)).and_then(VecDeque::pop_front)
            {
                return Ok(found);
            }
            match self.wire.poll()? {
                Some((sender, message)) => {
                    self.sort(sender, &message)?;
                    fruitless = 0;
                    continue;
                }
                None => fruitless = fruitless.saturating_add(1),
            }
            if let Some(reason) = &self.inbox.borrow().stopped {
                return Err(ExecutorError::Peer { rank: self.wire.rank(), reason: reason.clone() });
            }
            if fruitless < EAGER_POLLS {
                std::thread::yield_now();
            } else {
                std::thread::sleep(NAP);
            }
        }
    }

    fn sort(&self, sender: usize, message: &[u8]) -> Result<()> {
        let Some((key, more, part)) = parse(message) else {
            return Err(ExecutorError::Peer {
                rank: self.wire.rank(),
                reason: format!("a message of {} bytes from rank {sender} has no header", message.len()),
            });
        };
        let mut inbox = self.inbox.borrow_mut();
        if key == STOPPED {
            inbox.stopped.get_or_insert_with(|| String::from_utf8_lossy(part).into_owned());
            return Ok(());
        }
        let mut whole = inbox.started.remove(&(sender, key)).unwrap_or_default();
        whole.extend_from_slice(part);
        if more {
            inbox.started.insert((sender, key), whole);
        } else {
            inbox.messages.entry((sender, key)).or_default().push_back(whole);
        }
        Ok(())
    }

    /// Tells every other rank that the run has failed, so that nobody waits for ever.
    pub fn stop(&self, reason: &str) {
        for peer in (0..self.wire.world()).filter(|&p| p != self.wire.rank()) {
            // A broken wire has told its peers already.
            let _ = self.wire.post(peer, message(STOPPED, false, reason.as_bytes()));
        }
        let _ = self.wire.flush();
    }

    /// Reports of ranks `0..ranks` in order, at rank 0; `None` elsewhere.
    ///
    /// # Errors
    /// When a peer has stopped.
    pub fn gather(&self, ranks: usize, report: Vec<u8>) -> Result<Option<Vec<Vec<u8>>>> {
        self.put(0, REPORT, report)?;
        if self.wire.rank() != 0 {
            self.wire.flush()?;
            return Ok(None);
        }
        (0..ranks).map(|rank| self.take(rank, REPORT)).collect::<Result<_>>().map(Some)
    }
}

fn message(key: Key, more: bool, part: &[u8]) -> Vec<u8> {
    let mut message = Vec::with_capacity(HEADER + part.len());
    for word in [key[0], key[1], key[2], u32::from(more)] {
        message.extend(word.to_le_bytes());
    }
    message.extend_from_slice(part);
    message
}

fn parse(message: &[u8]) -> Option<(Key, bool, &[u8])> {
    let (header, part) = message.split_at_checked(HEADER)?;
    let word = |i: usize| Some(u32::from_le_bytes(header[4 * i..4 * i + 4].try_into().ok()?));
    Some(([word(0)?, word(1)?, word(2)?], word(3)? != 0, part))
}

impl<W: Wire> Transport for &Process<W> {
    fn rank(&self) -> usize {
        self.wire.rank()
    }

    fn send(&self, to: usize, tag: Tag, data: Vec<f32>) -> Result<()> {
        let mut bytes = Vec::with_capacity(4 * data.len());
        data.iter().for_each(|value| bytes.extend(value.to_le_bytes()));
        self.put(to, key(tag), bytes)
    }

    fn receive(&self, from: usize, tag: Tag) -> Result<Vec<f32>> {
        let bytes = self.take(from, key(tag))?;
        Ok(bytes.as_chunks::<4>().0.iter().map(|&word| f32::from_le_bytes(word)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use psim_models::operator::Dimension;
    use std::rc::Rc;

    type Queue = RefCell<VecDeque<(usize, Vec<u8>)>>;

    /// A wire inside one process, for as many ranks as there are queues.
    struct Loop {
        rank: usize,
        queues: Rc<Vec<Queue>>,
    }

    impl Wire for Loop {
        fn rank(&self) -> usize {
            self.rank
        }
        fn world(&self) -> usize {
            self.queues.len()
        }
        fn post(&self, to: usize, message: Vec<u8>) -> Result<()> {
            self.queues[to].borrow_mut().push_back((self.rank, message));
            Ok(())
        }
        fn poll(&self) -> Result<Option<(usize, Vec<u8>)>> {
            Ok(self.queues[self.rank].borrow_mut().pop_front())
        }
        fn flush(&self) -> Result<()> {
            Ok(())
        }
    }

    fn pair() -> [Process<Loop>; 2] {
        let queues = Rc::new(vec![Queue::default(), Queue::default()]);
        [0, 1].map(|rank| Process::new(Loop { rank, queues: Rc::clone(&queues) }))
    }

    #[test]
    fn tags_find_their_messages_in_any_order() {
        let [a, b] = pair();
        let (forward, collective) = (Tag::Forward(1, 2), Tag::Collective(Dimension::Cp));
        (&a).send(1, forward, vec![1.5, -2.0]).unwrap();
        (&a).send(1, collective, vec![]).unwrap();
        (&a).send(1, forward, vec![f32::MIN_POSITIVE]).unwrap();
        assert_eq!((&b).receive(0, collective).unwrap(), Vec::<f32>::new());
        assert_eq!((&b).receive(0, forward).unwrap(), [1.5, -2.0]);
        assert_eq!((&b).receive(0, forward).unwrap(), [f32::MIN_POSITIVE]);
        (&b).send(1, forward, vec![3.0]).unwrap();
        assert_eq!((&b).receive(1, forward).unwrap(), [3.0]);
    }

    #[test]
    fn reports_meet_at_rank_zero_and_failures_everywhere() {
        let [a, b] = pair();
        assert_eq!(b.gather(2, b"two".to_vec()).unwrap(), None);
        assert_eq!(a.gather(2, b"one".to_vec()).unwrap().unwrap(), [b"one", b"two"]);
        a.stop("out of memory");
        let error = (&b).receive(0, Tag::Bucket(0)).unwrap_err();
        assert!(error.to_string().contains("out of memory"));
    }

    #[test]
    fn parts_are_put_together() {
        let [a, b] = pair();
        let name = key(Tag::Bucket(3));
        a.wire.post(1, message(name, true, &1.0_f32.to_le_bytes())).unwrap();
        a.wire.post(1, message(name, false, &2.0_f32.to_le_bytes())).unwrap();
        assert_eq!((&b).receive(0, Tag::Bucket(3)).unwrap(), [1.0, 2.0]);
        assert!(parse(&[0; 15]).is_none());
    }
}
