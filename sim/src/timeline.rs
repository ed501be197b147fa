//! What happened when: spans on tracks, for traces and pictures.

use psim_hardware::Time;
use serde::Serialize;

/// A stream of one rank.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct Track {
    /// Group in the viewer (`stage 3`).
    pub process: String,
    /// Line in the group (`compute`, `tp`, `dp`, `p2p`).
    pub stream: String,
}

/// One piece of work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Span {
    /// Index into [`Timeline::tracks`].
    pub track: u32,
    /// Name (`F3`, `B3`, `reduce-scatter`).
    pub name: String,
    /// Category (`forward`, `backward`, `weight`, `communication`, `optimizer`).
    pub category: &'static str,
    /// Start.
    pub start: Time,
    /// End.
    pub end: Time,
}

/// Spans on tracks.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Timeline {
    /// Tracks.
    pub tracks: Vec<Track>,
    /// Spans, by start.
    pub spans: Vec<Span>,
}
