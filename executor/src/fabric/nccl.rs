//! [`Fabric`] over NCCL: one communicator per group and use, one per direction between neighbouring stages.
//!
//! A communicator between two stages and a stream of its own per direction let messages wait for each other without
//! holding up anything else. NCCL matches messages of one pair by order alone, so a receiver takes them in the order in
//! which the sender's program sends them, and keeps those that come before they are needed.

use super::{Fabric, Use, neighbours};
use crate::comm::{Comm, Tag, Transport};
use crate::error::{ExecutorError, Result};
use crate::mesh::{Group, Mesh};
use crate::run::Job;
use psim_kernels::Device;
use psim_kernels::cuda::nccl::{Communicator, Library, UniqueId};
use psim_kernels::cuda::runtime::{Lane, Runtime};
use psim_kernels::cuda::{CudaBuffer, CudaDevice, Message};
use psim_models::operator::Dimension;
use std::cell::RefCell;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// Stream of gradient buckets and ring blocks.
const BESIDE: Lane = Lane::Side(1);
/// First stream of the messages between stages.
const FIRST_PAIR: u32 = 16;

type Buffer<R> = CudaBuffer<<R as Runtime>::Memory>;

/// One direction between this rank and its neighbour.
struct Direction {
    communicator: Communicator,
    lane: Lane,
}

/// Messages from one rank: those that are still to come, and those that came early.
struct Inbox<R: Runtime> {
    order: VecDeque<Tag>,
    early: BTreeMap<Tag, (Buffer<R>, R::Event)>,
}

impl<R: Runtime> Default for Inbox<R> {
    fn default() -> Self {
        Self { order: VecDeque::new(), early: BTreeMap::new() }
    }
}

/// This rank's communicators.
pub struct Nccl<R: Runtime> {
    rank: usize,
    groups: BTreeMap<(Use, Vec<usize>), Communicator>,
    /// Keyed by (sender, receiver).
    directions: BTreeMap<(usize, usize), Direction>,
    inboxes: RefCell<BTreeMap<usize, Inbox<R>>>,
    /// Buffers on their way to other ranks.
    outbox: RefCell<Vec<(Buffer<R>, R::Event)>>,
}

impl<R: Runtime> Nccl<R> {
    /// Forms every group of the rank's plan; `control` carries the identities, and all ranks call it at once.
    ///
    /// # Errors
    /// When a peer stops, or NCCL refuses.
    pub fn connect<T: Transport>(
        library: &Arc<Library>,
        device: &CudaDevice<R>,
        control: &Comm<T>,
        job: &Job,
    ) -> Result<Self> {
        device.runtime().bind()?;
        let mesh = Mesh::new(&job.plan, control.rank())?;
        // Alone in the world, every collective still runs: that is what there is to check.
        let alone = job.plan.world() == 1;
        let mut groups = BTreeMap::new();
        let embedding = mesh.embedding_peers(&job.network, &job.layout);
        let wanted = [
            (Use::InLine, Some(&mesh.tp)),
            (Use::InLine, Some(&mesh.cp)),
            (Use::InLine, Some(&mesh.ep)),
            (Use::InLine, Some(&mesh.etp)),
            (Use::InLine, embedding.as_ref()),
            (Use::Beside, Some(&mesh.cp)),
            (Use::Beside, Some(&mesh.replicas)),
            (Use::Beside, Some(&mesh.expert_replicas)),
        ];
        for (purpose, group) in wanted {
            let Some(group) = group.filter(|g| g.size() > 1 || alone) else { continue };
            if let Entry::Vacant(place) = groups.entry((purpose, group.ranks.clone())) {
                place.insert(form(library, control, group)?);
            }
        }
        let mut directions = BTreeMap::new();
        for (index, (from, to)) in neighbours(&job.program.spec).into_iter().enumerate() {
            let ranks = vec![mesh.on_stage(from), mesh.on_stage(to)];
            let Some(index_in) = ranks.iter().position(|&r| r == mesh.rank) else { continue };
            let key = (ranks[0], ranks[1]);
            let communicator = form(library, control, &Group { ranks, index: index_in })?;
            directions.insert(key, Direction { communicator, lane: Lane::Side(FIRST_PAIR + index as u32) });
        }
        Ok(Self {
            rank: mesh.rank,
            groups,
            directions,
            inboxes: RefCell::default(),
            outbox: RefCell::default(),
        })
    }

    fn group(&self, group: &Group, purpose: Use) -> Result<&Communicator> {
        self.groups
            .get(&(purpose, group.ranks.clone()))
            .ok_or_else(|| refused(format!("no communicator among ranks {:?}", group.ranks)))
    }

    fn direction(&self, from: usize, to: usize) -> Result<&Direction> {
        self.directions
            .get(&(from, to))
            .ok_or_else(|| refused(format!("no communicator from rank {from} to {to}")))
    }
}

fn refused(reason: String) -> ExecutorError {
    ExecutorError::Communicator { library: "NCCL", reason }
}

/// Messages with every rank of a group, whose elements lie one range behind another in a buffer.
fn one_behind_another<'a, B>(buffer: &'a B, lens: &[usize]) -> Vec<Message<&'a B>> {
    lens.iter()
        .enumerate()
        .scan(0, |at, (peer, &len)| {
            let offset = *at;
            *at += len;
            Some(Message { peer, buffer, offset, len })
        })
        .collect()
}

fn lane(purpose: Use) -> Lane {
    match purpose {
        Use::InLine => Lane::Main,
        Use::Beside => BESIDE,
    }
}

/// Forms a group: its first rank makes the identity and sends it to the others.
fn form<T: Transport>(library: &Arc<Library>, control: &Comm<T>, group: &Group) -> Result<Communicator> {
    // Whatever else travels has another tag or another time.
    let tag = Tag::Collective(Dimension::Pp);
    let id = if group.index == 0 {
        let id = library.unique_id()?;
        let letter: Vec<f32> = id.bytes().iter().map(|&b| f32::from(b)).collect();
        for &peer in &group.ranks[1..] {
            control.send(Dimension::Pp, peer, tag, letter.clone())?;
        }
        id
    } else {
        let letter = control.receive(Dimension::Pp, group.ranks[0], tag)?;
        let bytes: Vec<u8> = letter.into_iter().map(|b| b as u8).collect();
        UniqueId::from_bytes(&bytes).ok_or_else(|| refused("an identity of the wrong length".to_owned()))?
    };
    Ok(library.join(id, group.index, group.size())?)
}

impl<R: Runtime> Fabric<CudaDevice<R>> for Nccl<R> {
    fn connects(&self, group: &Group, purpose: Use) -> bool {
        self.groups.contains_key(&(purpose, group.ranks.clone()))
    }
    fn all_gather(
        &self,
        device: &CudaDevice<R>,
        group: &Group,
        purpose: Use,
        from: &Buffer<R>,
        to: &mut Buffer<R>,
    ) -> Result<()> {
        // In line whatever the group's communicator is for: the result is needed next.
        device.all_gather(self.group(group, purpose)?, Lane::Main, from, to)?;
        Ok(())
    }
    fn all_reduce(
        &self,
        device: &CudaDevice<R>,
        group: &Group,
        purpose: Use,
        buffer: &mut Buffer<R>,
    ) -> Result<R::Event> {
        Ok(device.all_reduce(self.group(group, purpose)?, lane(purpose), buffer)?)
    }
    fn reduce_scatter(
        &self,
        device: &CudaDevice<R>,
        group: &Group,
        purpose: Use,
        from: &Buffer<R>,
        to: &mut Buffer<R>,
    ) -> Result<R::Event> {
        Ok(device.reduce_scatter(self.group(group, purpose)?, lane(purpose), from, to)?)
    }
    fn all_to_all(
        &self,
        device: &CudaDevice<R>,
        group: &Group,
        (from, sent): (&Buffer<R>, &[usize]),
        (to, received): (&mut Buffer<R>, &[usize]),
    ) -> Result<()> {
        let (sends, receives) = (one_behind_another(from, sent), one_behind_another(&*to, received));
        device.exchange(self.group(group, Use::InLine)?, Lane::Main, &sends, &receives)?;
        Ok(())
    }
    fn shift(
        &self,
        device: &CudaDevice<R>,
        group: &Group,
        purpose: Use,
        pairs: Vec<(&Buffer<R>, &mut Buffer<R>)>,
    ) -> Result<R::Event> {
        let n = group.size();
        let (next, previous) = ((group.index + 1) % n, (group.index + n - 1) % n);
        let mut sends = Vec::with_capacity(pairs.len());
        let mut receives = Vec::with_capacity(pairs.len());
        for (from, to) in pairs {
            sends.push(Message { peer: next, buffer: from, offset: 0, len: device.len(from) });
            receives.push(Message { peer: previous, len: device.len(to), buffer: &*to, offset: 0 });
        }
        Ok(device.exchange(self.group(group, purpose)?, lane(purpose), &sends, &receives)?)
    }
    fn expect(&self, messages: Vec<(usize, Vec<Tag>)>) {
        let mut inboxes = self.inboxes.borrow_mut();
        inboxes.clear();
        for (from, order) in messages {
            inboxes.insert(from, Inbox { order: order.into(), early: BTreeMap::new() });
        }
    }
    fn send(&self, device: &CudaDevice<R>, to: usize, tag: Tag, data: Buffer<R>) -> Result<()> {
        if to == self.rank {
            // The next chunk lies on this very rank.
            let mark = device.mark()?;
            self.inboxes.borrow_mut().entry(to).or_default().early.insert(tag, (data, mark));
            return Ok(());
        }
        let direction = self.direction(self.rank, to)?;
        let message = Message { peer: 1, buffer: &data, offset: 0, len: device.len(&data) };
        let done = device.exchange(&direction.communicator, direction.lane, &[message], &[])?;
        let mut outbox = self.outbox.borrow_mut();
        // What has arrived needs no keeping.
        let mut kept = Vec::with_capacity(outbox.len() + 1);
        for (buffer, mark) in outbox.drain(..) {
            if !device.reached(&mark)? {
                kept.push((buffer, mark));
            }
        }
        kept.push((data, done));
        *outbox = kept;
        Ok(())
    }
    fn receive(
        &self,
        device: &CudaDevice<R>,
        from: usize,
        tag: Tag,
        make: &dyn Fn() -> Result<Buffer<R>>,
    ) -> Result<Buffer<R>> {
        let mut inboxes = self.inboxes.borrow_mut();
        let inbox = inboxes.entry(from).or_default();
        loop {
            if let Some((buffer, mark)) = inbox.early.remove(&tag) {
                device.join(&mark)?;
                return Ok(buffer);
            }
            let Some(next) = inbox.order.pop_front() else {
                return Err(refused(format!("rank {from} does not send {tag:?}")));
            };
            let direction = self.direction(from, self.rank)?;
            let buffer = make()?;
            let message = Message { peer: 0, offset: 0, len: device.len(&buffer), buffer: &buffer };
            let done = device.exchange(&direction.communicator, direction.lane, &[], &[message])?;
            inbox.early.insert(next, (buffer, done));
        }
    }
    fn finish(&self, device: &CudaDevice<R>) -> Result<()> {
        for (buffer, mark) in self.outbox.borrow_mut().drain(..) {
            device.join(&mark)?;
            drop(buffer);
        }
        Ok(())
    }
}
