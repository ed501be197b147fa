//! Which replica takes a request.

use super::Fleet;
use crate::serving::options::Router;
use psim_models::serving::Request;

impl Fleet<'_> {
    fn takes(&self, replica: u32) -> bool {
        self.scaler.as_ref().is_none_or(|s| s.takes(replica))
    }

    /// A replica of another kind may be too small for what others hold.
    fn fits(&self, replica: u32, request: &Request) -> bool {
        self.groups.len() == 1 || self.replicas[replica as usize].fits(request)
    }

    /// Starts and drains replicas.
    pub(super) fn scale(&mut self, now: u64) {
        if let Some(scaler) = &mut self.scaler {
            let (loads, by_load) = (&self.loads, &mut self.by_load);
            let (groups, group_of) = (self.groups, &self.group_of);
            scaler.look(now, self.clients.in_system(), loads, |replica, takes| {
                let slowness = groups[group_of[replica as usize] as usize].slowness();
                let entry = (u64::from(loads[replica as usize]) * slowness, replica);
                if takes {
                    by_load.insert(entry);
                } else {
                    by_load.remove(&entry);
                }
            });
        }
    }

    pub(super) fn set_load(&mut self, replica: u32, load: u32) {
        let before = self.loads[replica as usize];
        if self.options.router != Router::RoundRobin && self.takes(replica) {
            let slowness = self.groups[self.group_of[replica as usize] as usize].slowness();
            self.by_load.remove(&(u64::from(before) * slowness, replica));
            self.by_load.insert((u64::from(load) * slowness, replica));
        }
        self.loads[replica as usize] = load;
    }

    /// The replica for a request; `None` where none can ever hold it.
    pub(super) fn route(&mut self, request: &Request) -> Option<u32> {
        let able = self.groups.len() > 1 || self.replicas[0].fits(request);
        if !able || !(0..self.replicas.len() as u32).any(|r| self.fits(r, request)) {
            return None;
        }
        match self.options.router {
            Router::RoundRobin if self.groups.len() > 1 => self.in_turn_by_weight(request),
            Router::RoundRobin => {
                // One replica at least takes requests.
                let all = self.replicas.len() as u32;
                let turn = (0..all).map(|i| (self.turn + i) % all).find(|r| self.takes(*r)).unwrap_or(0);
                self.turn = (turn + 1) % all;
                Some(turn)
            }
            Router::LeastLoad => self.least_load(request),
            Router::PrefixAware => self.by_prefix(request),
        }
    }

    fn least_load(&self, request: &Request) -> Option<u32> {
        self.by_load.iter().map(|(_, r)| *r).find(|r| self.fits(*r, request))
    }

    /// Every replica gains its weight, the one that is furthest ahead takes the request and pays the sum of the weights.
    fn in_turn_by_weight(&mut self, request: &Request) -> Option<u32> {
        let mut total = 0;
        let mut best: Option<u32> = None;
        for replica in 0..self.replicas.len() as u32 {
            if !self.takes(replica) || !self.fits(replica, request) {
                continue;
            }
            let gain = self.groups[self.group_of[replica as usize] as usize].share();
            self.ahead[replica as usize] += gain;
            total += gain;
            if best.is_none_or(|b| self.ahead[replica as usize] > self.ahead[b as usize]) {
                best = Some(replica);
            }
        }
        if let Some(best) = best {
            self.ahead[best as usize] -= total;
        }
        best
    }

    fn by_prefix(&mut self, request: &Request) -> Option<u32> {
        let key = match request.session {
            0 => u64::from(request.prefix_group),
            session => (1 << 32) | u64::from(session),
        };
        let shares = request.prefix > 0 || request.session > 0;
        let group = u64::from(request.prefix_group);
        let home = self.homes.get(&key).or_else(|| self.homes.get(&group)).copied();
        let passed = |(group, _): (u32, u32)| self.homes.get(&u64::from(group)).copied();
        let home = home.or_else(|| self.prefixes.upwards(request.prefix_group).find_map(passed));
        let home = home.filter(|_| shares);
        let total: u64 = u64::from(self.clients.in_system());
        let all = self.replicas.len() as u64;
        let crowded = |r: u32| u64::from(self.loads[r as usize]) * all > 2 * total + 8;
        let open = |r: &u32| self.takes(*r) && !crowded(*r) && self.fits(*r, request);
        let chosen = home.filter(open).or_else(|| self.least_load(request))?;
        if shares {
            self.homes.insert(key, chosen);
            if request.prefix > 0 && home != Some(chosen) {
                self.homes.insert(group, chosen);
            }
            // Others that pass the same places find them where they came first.
            for (group, _) in self.prefixes.upwards(request.prefix_group) {
                self.homes.entry(u64::from(group)).or_insert(chosen);
            }
        }
        Some(chosen)
    }
}
