//! When an engine takes notice of new requests, and how long it holds them back to batch them.

use super::Replica;
use crate::serving::lane::Lane;

/// Why prompts are held back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Holding {
    /// They are not.
    No,
    /// Until every attention copy has one.
    Spread,
    /// Every copy has one; a few steps more, so that others can join them.
    Batch,
}

impl Replica<'_> {
    /// Looks at the queue. Returns how many requests the next step may take.
    ///
    /// An engine that schedules a step while the one before it runs (overlap scheduling) takes a request that comes
    /// during a step into the step after the next. SGLang looks only every so many decoding steps, counted whether or
    /// not anybody waits, and after every step with prompts (`--scheduler-recv-interval`).
    pub(super) fn look(&mut self) -> usize {
        let waiting = self.waiting.len();
        let known = self.seen.min(waiting);
        if waiting == known && known == 0 {
            self.seen = 0;
            return 0;
        }
        match self.steps_to_look() {
            0 => {
                self.since_look = 0;
                self.seen = waiting;
            }
            steps => {
                self.seen = known;
                if waiting > known {
                    self.hold(steps);
                }
            }
        }
        let taken = if self.limits.lookahead && self.flowing { known } else { self.seen };
        if taken < self.seen {
            self.hold(1);
        }
        taken
    }

    /// A run of decoding steps ends after so many.
    fn hold(&mut self, steps: u64) {
        self.hold_steps = if self.hold_steps == 0 { steps } else { self.hold_steps.min(steps) };
    }

    /// Decoding steps until the engine looks at its queue: 0 where it looks now.
    fn steps_to_look(&self) -> u64 {
        let every = self.limits.receive_steps;
        if every <= 1 || self.lanes.iter().all(|l| l.decoding == 0) {
            return 0;
        }
        match self.since_look % every {
            0 if self.since_look > 0 => 0,
            passed => every - passed,
        }
    }

    /// Prompts wait until every attention copy has one, and then for others to join: each for a number of steps at most
    /// and only beside decoding.
    pub(super) fn hold_back(&mut self, known: usize) -> bool {
        let beside = self.lanes.iter().any(|l| l.decoding > 0)
            && self.lanes.iter().all(|l: &Lane| l.prompts.is_empty());
        let (holding, left) = if known < self.lanes.len() && self.batched == 0 {
            (Holding::Spread, self.limits.prompt_wait.saturating_sub(self.held))
        } else {
            (Holding::Batch, self.limits.prompt_batch.saturating_sub(self.batched))
        };
        if !beside || left == 0 {
            return false;
        }
        self.holding = holding;
        self.hold(left);
        true
    }

    /// Counts the steps of a run that is done.
    pub(super) fn count_waits(&mut self, steps: u64, decode_only: bool) {
        match self.holding {
            Holding::No => {}
            Holding::Spread => self.held += steps,
            Holding::Batch => self.batched += steps,
        }
        self.since_look = if decode_only { self.since_look + steps } else { self.limits.receive_steps };
        self.flowing = true;
    }
}

#[cfg(test)]
mod tests {
    use crate::serving::tests::{bf16, check_laws, cost, single};
    use psim_cost_models::serving::engine::find;
    use psim_hardware::{Seconds, Time};
    use psim_models::serving::{Arrival, Request, ServingWorkload, Traffic};

    #[test]
    fn a_request_of_the_last_step_does_not_wait_for_the_next_arrival() {
        let engine = find("vllm-v1").unwrap();
        assert!(engine.lookahead);
        let cost = cost("llama3-8b", "H100-SXM-80GB", bf16(1), engine);
        let workload = ServingWorkload::fixed("w", Arrival::Burst, 3, 500, 20);
        let mut traffic = Traffic::generate(&workload, 1);
        let alone = {
            let mut one = traffic.clone();
            one.requests.truncate(1);
            single(&cost, engine, &one).outcomes[0]
        };
        let (first, whole) = ((alone.first_token - alone.sent).0, (alone.finish - alone.sent).0);
        let step = (whole - first) / 19;
        // The second reaches the engine in the middle of the first one's last step, the third comes a minute later.
        let delay = (cost.parameters().ttft_ms * 1e9 + cost.parameters().front_us * 1e6) as u64;
        let later = Time(whole - delay.min(whole) - step / 2);
        traffic.requests[1] = Request { arrival: later, ..traffic.requests[1] };
        traffic.requests[2] = Request { arrival: Seconds(60.0).into(), ..traffic.requests[2] };
        for requests in [3, 2] {
            traffic.requests.truncate(requests);
            let run = single(&cost, engine, &traffic);
            check_laws(&run, &traffic);
            let waited = (run.outcomes[1].first_token - run.outcomes[1].sent).0;
            assert!(waited <= first + step, "{waited} for {first} and a step of {step}");
        }
    }
}
