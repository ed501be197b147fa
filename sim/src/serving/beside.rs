//! What goes with a run beside its deployment and its requests: speculation, and when to give it up.

use super::speculation::{Drafter, Speculating};
use psim_models::serving::ServiceLevel;

/// A run ends as soon as its promises are lost.
///
/// A promise is lost when more requests have broken its limit than its percentile leaves room for; requests that still
/// wait count once they have waited for longer than it. So whatever is given up would have broken the promise in the end,
/// and a queue that only grows is given up early where there is a limit on waiting. Promises on gaps between tokens are
/// not followed.
#[derive(Debug, Clone, Copy)]
pub struct StopWhenLost<'a> {
    /// Service level of each tenant.
    pub levels: &'a [ServiceLevel],
    /// Limits are taken so many times longer: 1 for the promises as they are.
    pub slack: f64,
}

/// What goes with a run.
#[derive(Debug, Clone, Copy, Default)]
pub struct Beside<'a> {
    /// Decoding steps are rounds of drafts and their verification.
    pub speculation: Option<&'a Speculating<'a>>,
    /// Source of drafts as the prefill pool of a split prices it: its draft model reads the prompts there.
    pub prompts: Option<&'a Drafter<'a>>,
    /// Give up where promises are lost.
    pub stop: Option<StopWhenLost<'a>>,
}
