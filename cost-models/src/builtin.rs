//! The embedded fitted profiles: text in the binary, parsed once per accelerator when first asked for.

use psim_hardware::profile::{AcceleratorProfile, FabricProfile};
use std::sync::{Arc, OnceLock};

/// One embedded accelerator profile.
struct Embedded<T: 'static> {
    name: &'static str,
    text: &'static str,
    parsed: OnceLock<Option<Arc<T>>>,
}

/// Lists embedded files: canonical name and path below `data/`.
macro_rules! embedded {
    ($type:ty, $folder:literal, [$($name:literal => $file:literal),* $(,)?]) => {
        [$(Embedded::<$type> {
            name: $name,
            text: include_str!(concat!("../data/", $folder, "/", $file, ".toml")),
            parsed: OnceLock::new(),
        }),*]
    };
}

static ACCELERATORS: [Embedded<AcceleratorProfile>; 0] = embedded!(AcceleratorProfile, "accelerators", []);

static FABRICS: [Embedded<FabricProfile>; 0] = embedded!(FabricProfile, "fabrics", []);

fn find<T: serde::de::DeserializeOwned>(list: &'static [Embedded<T>], name: &str) -> Option<Arc<T>> {
    let entry = list.iter().find(|e| e.name == name)?;
    entry.parsed.get_or_init(|| toml::from_str(entry.text).ok().map(Arc::new)).clone()
}

/// The built-in profile of an accelerator, by canonical name.
pub(crate) fn accelerator(name: &str) -> Option<Arc<AcceleratorProfile>> {
    find(&ACCELERATORS, name)
}

/// The built-in profile of a kind of fabric.
pub(crate) fn fabric(kind: &str) -> Option<Arc<FabricProfile>> {
    find(&FABRICS, kind)
}

/// Canonical names of the accelerators with a built-in profile.
pub fn accelerator_names() -> impl Iterator<Item = &'static str> {
    ACCELERATORS.iter().map(|e| e.name)
}

/// Kinds of fabrics with a built-in profile.
pub fn fabric_kinds() -> impl Iterator<Item = &'static str> {
    FABRICS.iter().map(|e| e.name)
}
