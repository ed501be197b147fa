//! Collectives between CUDA devices: lengths are checked, then NCCL runs on a stream of the device.
//!
//! On the main lane they follow the operators like one of them. On a side lane they start when the work issued so far is
//! done and run beside later work; the caller keeps the buffers until the device has joined the event that comes back.

use super::nccl::{Communicator, Extent};
use super::runtime::{Lane, Runtime};
use super::state::{CudaBuffer, CudaDevice};
use crate::device::{Result, need};

/// Part of a buffer that goes to or comes from a rank of the group.
#[derive(Debug, Clone, Copy)]
pub struct Message<B> {
    /// Rank in the group.
    pub peer: usize,
    /// Buffer.
    pub buffer: B,
    /// First element.
    pub offset: usize,
    /// Elements.
    pub len: usize,
}

type Buffer<R> = CudaBuffer<<R as Runtime>::Memory>;

impl<R: Runtime> CudaDevice<R> {
    fn extent(&self, buffer: &Buffer<R>, offset: usize, count: usize) -> Extent {
        Extent { address: self.element_address(buffer, offset), count, format: buffer.format }
    }

    fn on_lane(&self, lane: Lane, work: impl FnOnce(u64) -> Result<()>) -> Result<R::Event> {
        self.runtime.bind()?;
        if lane != Lane::Main {
            self.runtime.wait(lane, &self.runtime.record(Lane::Main)?)?;
        }
        work(self.runtime.stream(lane)?)?;
        self.runtime.record(lane)
    }

    /// Sum over the group, everywhere, in place.
    ///
    /// # Errors
    /// When NCCL refuses.
    pub fn all_reduce(&self, group: &Communicator, lane: Lane, buffer: &mut Buffer<R>) -> Result<R::Event> {
        let all = self.extent(buffer, 0, buffer.len);
        // SAFETY: the whole of a live buffer; the caller keeps it.
        self.on_lane(lane, |stream| unsafe { group.all_reduce(all, all.address, stream) })
    }

    /// This rank's part of the sum over the group: `from` has as many parts of `to`'s length as there are ranks.
    ///
    /// # Errors
    /// When lengths or formats do not fit, or NCCL refuses.
    pub fn reduce_scatter(
        &self,
        group: &Communicator,
        lane: Lane,
        from: &Buffer<R>,
        to: &mut Buffer<R>,
    ) -> Result<R::Event> {
        need("reduce-scatter", "source", to.len * group.ranks(), from.len)?;
        self.alike(from, to)?;
        let (from, to) = (self.address(from), self.extent(to, 0, to.len));
        // SAFETY: lengths were checked; the caller keeps the buffers.
        self.on_lane(lane, |stream| unsafe { group.reduce_scatter(from, to, stream) })
    }

    /// `from` of every rank, in order.
    ///
    /// # Errors
    /// When lengths or formats do not fit, or NCCL refuses.
    pub fn all_gather(
        &self,
        group: &Communicator,
        lane: Lane,
        from: &Buffer<R>,
        to: &mut Buffer<R>,
    ) -> Result<R::Event> {
        need("all-gather", "target", from.len * group.ranks(), to.len)?;
        self.alike(from, to)?;
        let (from, to) = (self.extent(from, 0, from.len), self.address(to));
        // SAFETY: lengths were checked; the caller keeps the buffers.
        self.on_lane(lane, |stream| unsafe { group.all_gather(from, to, stream) })
    }

    /// What `root` has, everywhere, in place.
    ///
    /// # Errors
    /// When NCCL refuses.
    pub fn broadcast(
        &self,
        group: &Communicator,
        lane: Lane,
        buffer: &mut Buffer<R>,
        root: usize,
    ) -> Result<R::Event> {
        let all = self.extent(buffer, 0, buffer.len);
        // SAFETY: the whole of a live buffer; the caller keeps it.
        self.on_lane(lane, |stream| unsafe { group.broadcast(all, root, stream) })
    }

    /// Sends and receives that happen together: point to point, rings, all-to-all. What is received is written into its
    /// buffer, as by every operator, behind the handle.
    ///
    /// # Errors
    /// When a message lies outside its buffer, or NCCL refuses.
    pub fn exchange(
        &self,
        group: &Communicator,
        lane: Lane,
        sends: &[Message<&Buffer<R>>],
        receives: &[Message<&Buffer<R>>],
    ) -> Result<R::Event> {
        let extent = |peer: usize, buffer: &Buffer<R>, offset: usize, len: usize| {
            need("exchange", "message", offset + len, buffer.len)?;
            Ok((peer, self.extent(buffer, offset, len)))
        };
        let sends: Vec<_> =
            sends.iter().map(|m| extent(m.peer, m.buffer, m.offset, m.len)).collect::<Result<_>>()?;
        let receives: Vec<_> =
            receives.iter().map(|m| extent(m.peer, m.buffer, m.offset, m.len)).collect::<Result<_>>()?;
        // SAFETY: extents were checked; the caller keeps the buffers.
        self.on_lane(lane, |stream| unsafe { group.exchange(&sends, &receives, stream) })
    }

    fn alike(&self, from: &Buffer<R>, to: &Buffer<R>) -> Result<()> {
        if from.format == to.format {
            Ok(())
        } else {
            Err(self.unsupported("collectives between buffers of different formats".to_owned()))
        }
    }
}
