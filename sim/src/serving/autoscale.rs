//! Replicas that come and go with the load.
//!
//! The number wanted is the requests in the system over a target per replica. More are started at once and serve after
//! their start-up time, but are paid for from the start; fewer are wanted for a while before one is drained, which
//! finishes what it has and takes nothing new.

use serde::{Deserialize, Serialize};

/// A rule for the number of replicas.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Autoscale {
    /// Replicas that always run, at least 1.
    pub least: u32,
    /// Requests in the system per replica that are aimed at.
    pub requests_per_replica: f64,
    /// Seconds from the decision to the first step (machine, image, weights, graphs).
    pub start_up_s: f64,
    /// Seconds for which fewer must suffice before one goes.
    pub cool_down_s: f64,
}

impl Autoscale {
    /// What is wrong with the numbers, if anything.
    pub fn fault(&self, most: u32) -> Option<String> {
        let time = |x: f64| x.is_finite() && (0.0..=1e7).contains(&x);
        if self.least == 0 || self.least > most {
            Some(format!("autoscaling from {} to {most} replicas is impossible", self.least))
        } else if !(self.requests_per_replica.is_finite() && self.requests_per_replica > 0.0) {
            Some(format!("{} requests per replica must be above zero", self.requests_per_replica))
        } else if !time(self.start_up_s) || !time(self.cool_down_s) {
            Some("start-up and cool-down must be seconds of at least zero".to_owned())
        } else {
            None
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Off,
    /// Serves from this time on.
    Starting(u64),
    On,
    Draining,
}

/// The states of all replicas.
#[derive(Debug, Clone)]
pub(super) struct Scaler {
    rule: Autoscale,
    states: Vec<State>,
    /// Since when each replica is paid for.
    since: Vec<u64>,
    paid: u64,
    /// Since when fewer would do.
    enough_since: Option<u64>,
    pub(super) most_on: u32,
}

impl Scaler {
    pub(super) fn new(rule: Autoscale, replicas: u32) -> Self {
        let state = |i: u32| if i < rule.least { State::On } else { State::Off };
        Self {
            rule,
            states: (0..replicas).map(state).collect(),
            since: vec![0; replicas as usize],
            paid: 0,
            enough_since: None,
            most_on: rule.least,
        }
    }

    /// New requests may go to it.
    pub(super) fn takes(&self, replica: u32) -> bool {
        self.states[replica as usize] == State::On
    }

    fn running(&self) -> u32 {
        self.states.iter().filter(|s| matches!(s, State::On | State::Starting(_))).count() as u32
    }

    /// Looks at the load; replicas that begin or cease to take requests are told to `change`.
    pub(super) fn look(
        &mut self,
        now: u64,
        in_system: u32,
        loads: &[u32],
        mut change: impl FnMut(u32, bool),
    ) {
        for (i, state) in self.states.iter_mut().enumerate() {
            if let State::Starting(at) = *state
                && at <= now
            {
                *state = State::On;
                change(i as u32, true);
            }
        }
        let wanted = (f64::from(in_system) / self.rule.requests_per_replica).ceil() as u32;
        let wanted = wanted.clamp(self.rule.least, self.states.len() as u32);
        let mut running = self.running();
        while running < wanted {
            // One that drains is warm; else a cold one starts.
            if let Some(i) = self.states.iter().position(|s| *s == State::Draining) {
                self.states[i] = State::On;
                change(i as u32, true);
            } else if let Some(i) = self.states.iter().position(|s| *s == State::Off) {
                self.states[i] = State::Starting(now + (self.rule.start_up_s * 1e12) as u64);
                self.since[i] = now;
            } else {
                break;
            }
            running += 1;
        }
        self.most_on = self.most_on.max(running);
        if wanted >= running {
            self.enough_since = None;
            return;
        }
        let since = *self.enough_since.get_or_insert(now);
        if now - since >= (self.rule.cool_down_s * 1e12) as u64 {
            self.enough_since = Some(now);
            let on = self.states.iter().filter(|s| **s == State::On).count() as u32;
            // The emptiest goes, but never the last that takes requests.
            if on <= self.rule.least {
                return;
            }
            let leaving =
                (0..self.states.len()).filter(|i| self.states[*i] == State::On).min_by_key(|i| loads[*i]);
            if let Some(i) = leaving {
                self.states[i] = State::Draining;
                change(i as u32, false);
                self.emptied(i as u32, loads[i], now);
            }
        }
    }

    /// A replica has `load` requests left; one that drains and has none is switched off.
    pub(super) fn emptied(&mut self, replica: u32, load: u32, now: u64) {
        let i = replica as usize;
        if load == 0 && self.states[i] == State::Draining {
            self.states[i] = State::Off;
            self.paid += now.saturating_sub(self.since[i]);
        }
    }

    /// Replica-seconds paid for until `end`.
    pub(super) fn replica_seconds(&self, end: u64) -> f64 {
        let open: u64 = self
            .states
            .iter()
            .zip(&self.since)
            .filter(|(s, _)| **s != State::Off)
            .map(|(_, since)| end.saturating_sub(*since))
            .sum();
        (self.paid + open) as f64 * 1e-12
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serving::{FleetOptions, Router, ServingInput, ServingReport, ServingRun, simulate};
    use psim_cost_models::ProfileLibrary;
    use psim_cost_models::serving::StepCost;
    use psim_cost_models::serving::engine::find;
    use psim_hardware::catalogue::{HomogeneousOptions, homogeneous};
    use psim_models::presets;
    use psim_models::serving::{
        Arrival, Deployment, NumberFormat, Quantization, ServiceLevel, ServingWorkload, Traffic,
    };

    fn serve(
        arrival: Arrival,
        requests: u32,
        replicas: u32,
        router: Router,
        rule: Option<Autoscale>,
    ) -> (ServingRun, Traffic) {
        let engine = find("vllm-v1").unwrap();
        let cluster = homogeneous("H100-SXM-80GB", 8, &HomogeneousOptions::default()).unwrap();
        let model = presets::find("llama3-8b").unwrap();
        let d = Deployment::tensor_parallel(1, Quantization::uniform(NumberFormat::Bf16));
        let library = ProfileLibrary::built_in();
        let cost = StepCost::new(&model, &d, &cluster, cluster.first_node(), engine, &library).unwrap();
        let traffic = Traffic::generate(&ServingWorkload::fixed("w", arrival, requests, 1000, 200), 3);
        let options = FleetOptions { router, autoscale: rule, ..FleetOptions::default() };
        let run =
            simulate(&ServingInput { cost: &cost, engine, traffic: &traffic, replicas, options }).unwrap();
        (run, traffic)
    }

    fn rule() -> Autoscale {
        Autoscale { least: 1, requests_per_replica: 20.0, start_up_s: 5.0, cool_down_s: 10.0 }
    }

    #[test]
    fn a_ramp_calls_replicas_and_their_absence_is_cheaper() {
        let ramp = Arrival::Ramp { from: 1.0, to: 40.0, over_s: 60.0 };
        for router in [Router::RoundRobin, Router::LeastLoad, Router::PrefixAware] {
            let (fixed, t) = serve(ramp.clone(), 2000, 8, router, None);
            let (scaled, _) = serve(ramp.clone(), 2000, 8, router, Some(rule()));
            assert!(scaled.most_replicas > 2, "{router:?}");
            assert!(scaled.replica_seconds < fixed.replica_seconds);
            assert_eq!(scaled.generated_tokens, t.output_tokens());
            // Start-up and fewer replicas cost latency.
            let level = [ServiceLevel::default()];
            let (a, b) = (ServingReport::new(&scaled, &t, &level), ServingReport::new(&fixed, &t, &level));
            assert!(a.e2e_ms.p99 >= b.e2e_ms.p99);
            assert!((fixed.replica_seconds - 8.0 * fixed.end.0 as f64 * 1e-12).abs() < 1e-6);
        }
    }

    #[test]
    fn a_day_ends_with_fewer_replicas_than_its_peak() {
        let day = Arrival::Diurnal { mean: 15.0, peak_ratio: 1.9, period_s: 120.0 };
        let (run, t) = serve(day, 3600, 8, Router::LeastLoad, Some(rule()));
        assert_eq!(run.generated_tokens, t.output_tokens());
        let mean = run.replica_seconds / (run.end.0 as f64 * 1e-12);
        assert!(mean < 0.95 * f64::from(run.most_replicas), "{mean} {}", run.most_replicas);
    }

    #[test]
    fn impossible_rules_are_refused() {
        for bad in [
            Autoscale { least: 0, ..rule() },
            Autoscale { least: 9, ..rule() },
            Autoscale { requests_per_replica: 0.0, ..rule() },
            Autoscale { start_up_s: f64::NAN, ..rule() },
        ] {
            assert!(bad.fault(8).is_some(), "{bad:?}");
        }
        assert!(rule().fault(8).is_none());
    }
}
