//! Communication between devices on their own buffers and streams, beside the host's messages of [`crate::comm`].
//!
//! Where a rank has a fabric, tensors go over it and the host never waits for them. Collectives in the middle of the
//! computation run in its stream; gradient buckets, ring blocks and messages between stages run beside it.

mod nccl;

pub use nccl::Nccl;

use crate::comm::Tag;
use crate::error::Result;
use crate::mesh::Group;
use psim_kernels::Device;
use psim_sim::pipeline::PipelineSpec;
use psim_sim::schedule::{Order, PassKind, model_chunk, stage_of_chunk};

/// What a group's communicator is for: work beside the computation must not wait behind work in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Use {
    /// In the middle of the computation.
    InLine,
    /// Beside it.
    Beside,
}

/// Collectives between devices. Buffers given to work [`Use::Beside`] are kept by the caller until the device has joined
/// the mark.
pub trait Fabric<D: Device> {
    /// There is a communicator for this group.
    fn connects(&self, group: &Group, purpose: Use) -> bool;
    /// Every rank's buffer, in order.
    ///
    /// # Errors
    /// When the library refuses; so for all below.
    fn all_gather(
        &self,
        device: &D,
        group: &Group,
        purpose: Use,
        from: &D::Buffer,
        to: &mut D::Buffer,
    ) -> Result<()>;
    /// Sum over the group, in place.
    fn all_reduce(&self, device: &D, group: &Group, purpose: Use, buffer: &mut D::Buffer) -> Result<D::Mark>;
    /// This rank's part of the sum over the group, all parts as long as `to`.
    fn reduce_scatter(
        &self,
        device: &D,
        group: &Group,
        purpose: Use,
        from: &D::Buffer,
        to: &mut D::Buffer,
    ) -> Result<D::Mark>;
    /// `sent[i]` elements to each rank, one range behind another, and `received[i]` elements from each.
    fn all_to_all(
        &self,
        device: &D,
        group: &Group,
        from: (&D::Buffer, &[usize]),
        to: (&mut D::Buffer, &[usize]),
    ) -> Result<()>;
    /// To the next rank of the group and from the previous one.
    fn shift(
        &self,
        device: &D,
        group: &Group,
        purpose: Use,
        pairs: Vec<(&D::Buffer, &mut D::Buffer)>,
    ) -> Result<D::Mark>;
    /// Starts a step: what other ranks are going to send to this one, in their order.
    fn expect(&self, messages: Vec<(usize, Vec<Tag>)>);
    /// Sends a buffer to another stage; does not wait.
    fn send(&self, device: &D, to: usize, tag: Tag, data: D::Buffer) -> Result<()>;
    /// A buffer from another stage; `make` allocates one. Later work waits for it, the host does not.
    fn receive(
        &self,
        device: &D,
        from: usize,
        tag: Tag,
        make: &dyn Fn() -> Result<D::Buffer>,
    ) -> Result<D::Buffer>;
    /// Ends a step: buffers that were sent are given back.
    fn finish(&self, device: &D) -> Result<()>;
}

/// Neighbours in the pipeline, as (sending stage, receiving stage), each pair once, in order.
pub(crate) fn neighbours(spec: &PipelineSpec) -> Vec<(usize, usize)> {
    let chunks = spec.stages * spec.chunks_per_stage;
    let stage = |chunk: u32| stage_of_chunk(spec, chunk) as usize;
    let mut pairs: Vec<(usize, usize)> = (1..chunks)
        .map(|chunk| (stage(chunk - 1), stage(chunk)))
        .filter(|(a, b)| a != b)
        .flat_map(|(a, b)| [(a, b), (b, a)])
        .collect();
    pairs.sort_unstable();
    pairs.dedup();
    pairs
}

/// Messages that stage `from` sends to stage `to` in a step, in its order.
pub(crate) fn messages(spec: &PipelineSpec, order: &Order, from: usize, to: usize) -> Vec<Tag> {
    let chunks = spec.stages * spec.chunks_per_stage;
    let goes_to = |chunk: u32| stage_of_chunk(spec, chunk) as usize == to;
    order
        .stage(from)
        .iter()
        .filter_map(|pass| {
            let chunk = model_chunk(spec, from as u32, u32::from(pass.chunk));
            match pass.kind {
                PassKind::Forward if chunk + 1 < chunks && goes_to(chunk + 1) => {
                    Some(Tag::Forward(chunk + 1, pass.micro_batch))
                }
                PassKind::Backward if chunk > 0 && goes_to(chunk - 1) => {
                    Some(Tag::Backward(chunk - 1, pass.micro_batch))
                }
                _ => None,
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests_support::plan;
    use psim_models::Plan;
    use psim_models::plan::Schedule;
    use psim_sim::step::StepProgram;

    /// Every message that a stage waits for is sent by the stage that it waits for, once.
    #[test]
    fn every_message_has_one_sender() {
        for (schedule, pp, vpp) in [
            (Schedule::OneFOneB, 4, 1),
            (Schedule::Interleaved, 2, 3),
            (Schedule::ZbH1, 3, 1),
            (Schedule::ZbV, 2, 2),
        ] {
            let plan = Plan { pp, vpp, schedule, global_batch: 8, ..plan() };
            let StepProgram { spec, order } = StepProgram::new(&plan).unwrap();
            let mut sent: Vec<Tag> =
                neighbours(&spec).into_iter().flat_map(|(a, b)| messages(&spec, &order, a, b)).collect();
            let chunks = pp * vpp;
            let crossing =
                (1..chunks).filter(|&c| stage_of_chunk(&spec, c) != stage_of_chunk(&spec, c - 1)).count();
            assert_eq!(sent.len(), 2 * crossing * 8, "{schedule:?}");
            sent.sort_unstable();
            sent.dedup();
            assert_eq!(sent.len(), 2 * crossing * 8, "{schedule:?}");
        }
    }
}
