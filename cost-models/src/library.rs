//! Where profiles come from: built in, overridden by what a user loads.

use crate::{builtin, defaults, relatives, stacks, sustained};
use psim_hardware::Accelerator;
use psim_hardware::profile::sustained::{FabricShare, Sustained};
use psim_hardware::profile::{AcceleratorProfile, FabricProfile, Provenance, StackProfile};
use std::sync::Arc;

/// Built-in profiles and the user's own, which win.
#[derive(Debug, Clone)]
pub struct ProfileLibrary {
    accelerators: Vec<Arc<AcceleratorProfile>>,
    fabrics: Vec<Arc<FabricProfile>>,
    stacks: Vec<StackProfile>,
    sustained: Vec<Sustained>,
    fabric_shares: Vec<FabricShare>,
}

/// An accelerator profile found for a machine.
#[derive(Debug, Clone)]
pub struct FoundAccelerator {
    /// The profile.
    pub profile: Arc<AcceleratorProfile>,
    /// `Measured` for this machine, `Transferred` from a relative, `Datasheet` for documented defaults.
    pub provenance: Provenance,
}

impl ProfileLibrary {
    /// The profiles in the binary. Accelerator and fabric profiles are parsed when first used.
    pub fn built_in() -> Self {
        Self {
            accelerators: Vec::new(),
            fabrics: Vec::new(),
            stacks: stacks::built_in(),
            sustained: sustained::built_in().accelerator.clone(),
            fabric_shares: sustained::built_in().fabric.clone(),
        }
    }

    /// Adds or replaces the profile of one accelerator.
    pub fn add_accelerator(&mut self, profile: AcceleratorProfile) {
        self.accelerators.retain(|p| p.accelerator != profile.accelerator);
        self.accelerators.push(Arc::new(profile));
    }

    /// Adds or replaces the profile of one kind of fabric.
    pub fn add_fabric(&mut self, profile: FabricProfile) {
        self.fabrics.retain(|p| p.kind != profile.kind);
        self.fabrics.push(Arc::new(profile));
    }

    /// Adds or replaces a software stack.
    pub fn add_stack(&mut self, profile: StackProfile) {
        self.stacks.retain(|p| p.name != profile.name);
        self.stacks.push(profile);
    }

    /// Adds or replaces the sustained share of one kind of fabric.
    pub fn add_fabric_share(&mut self, share: FabricShare) {
        self.fabric_shares.retain(|s| s.kind != share.kind);
        self.fabric_shares.push(share);
    }

    /// Sustained share of a kind of fabric; 1 where nothing is known.
    pub fn fabric_share(&self, kind: &str) -> f64 {
        self.fabric_shares.iter().find(|s| s.kind == kind).map_or(1.0, |s| s.share)
    }

    /// Adds or replaces the sustained shares of one accelerator.
    pub fn add_sustained(&mut self, shares: Sustained) {
        self.sustained.retain(|s| s.accelerator != shares.accelerator);
        self.sustained.push(shares);
    }

    /// Sustained shares of an accelerator: its own, its nearest relative's, or nothing lost.
    pub fn sustained(&self, accelerator: &Accelerator) -> Sustained {
        let own = |name: &str| self.sustained.iter().find(|s| s.accelerator == name).cloned();
        own(&accelerator.name)
            .or_else(|| relatives::of(accelerator).find_map(own))
            .unwrap_or_else(|| Sustained::none(&accelerator.name))
    }

    /// A stack by name.
    pub fn stack(&self, name: &str) -> Option<&StackProfile> {
        self.stacks.iter().find(|s| s.name == name)
    }

    /// Every stack, built-in ones first.
    pub fn stacks(&self) -> impl Iterator<Item = &StackProfile> {
        self.stacks.iter()
    }

    /// The profile measured on exactly this accelerator.
    pub fn measured(&self, name: &str) -> Option<Arc<AcceleratorProfile>> {
        self.accelerators
            .iter()
            .find(|p| p.accelerator == name)
            .cloned()
            .or_else(|| builtin::accelerator(name))
    }

    /// The best profile for an accelerator: its own, that of its nearest measured relative, or documented defaults.
    pub fn accelerator(&self, accelerator: &Accelerator) -> FoundAccelerator {
        if let Some(profile) = self.measured(&accelerator.name) {
            return FoundAccelerator { profile, provenance: Provenance::Measured };
        }
        for relative in relatives::of(accelerator) {
            if let Some(profile) = self.measured(relative) {
                return FoundAccelerator { profile, provenance: Provenance::Transferred };
            }
        }
        FoundAccelerator {
            profile: Arc::new(defaults::accelerator(&accelerator.name)),
            provenance: Provenance::Datasheet,
        }
    }

    /// The profile of a kind of fabric, else documented defaults.
    pub fn fabric(&self, kind: &str) -> Arc<FabricProfile> {
        let found = self
            .fabrics
            .iter()
            .find(|p| p.kind == kind)
            .cloned()
            .or_else(|| builtin::fabric(kind))
            .unwrap_or_else(|| Arc::new(defaults::fabric(kind)));
        let share = self.fabric_share(kind);
        if share == 1.0 {
            return found;
        }
        let mut scaled = (*found).clone();
        for rate in [&mut scaled.ring, &mut scaled.tree, &mut scaled.all_to_all, &mut scaled.send_recv] {
            *rate = (*rate * share).min(1.0);
        }
        Arc::new(scaled)
    }
}
