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

static ACCELERATORS: [Embedded<AcceleratorProfile>; 18] = embedded!(
    AcceleratorProfile,
    "accelerators",
    [
        "A100-SXM-80GB" => "A100-SXM-80GB",
        "A100-PCIe-80GB" => "A100-PCIe-80GB",
        "A40" => "A40",
        "H100-SXM-80GB" => "H100-SXM-80GB",
        "H200-SXM-141GB" => "H200-SXM-141GB",
        "L40S" => "L40S",
        "RTX-PRO-6000-Server" => "RTX-PRO-6000-Server",
        "B200-SXM" => "B200-SXM",
        "B300-SXM" => "B300-SXM",
        "GB200" => "GB200",
        "GB300" => "GB300",
        "Arc-Pro-B60" => "Arc-Pro-B60",
        "MI210" => "MI210",
        "MI300X" => "MI300X",
        "MI325X" => "MI325X",
        "MI355X" => "MI355X",
        "Gaudi2" => "Gaudi2",
        "Gaudi3" => "Gaudi3",
    ]
);

static FABRICS: [Embedded<FabricProfile>; 2] =
    embedded!(FabricProfile, "fabrics", ["infiniband" => "infiniband", "efa" => "efa"]);

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_embedded_profile_parses_and_names_its_machine() {
        for entry in &ACCELERATORS {
            let parsed: Result<AcceleratorProfile, _> = toml::from_str(entry.text);
            assert!(parsed.is_ok(), "{}: {:?}", entry.name, parsed.err());
            assert_eq!(accelerator(entry.name).map(|p| p.accelerator.clone()).as_deref(), Some(entry.name));
        }
        for entry in &FABRICS {
            let parsed: Result<FabricProfile, _> = toml::from_str(entry.text);
            assert!(parsed.is_ok(), "{}: {:?}", entry.name, parsed.err());
        }
    }

    #[test]
    fn embedded_data_stays_small() {
        let bytes: usize = ACCELERATORS.iter().map(|e| e.text.len()).sum();
        assert!(bytes < 1_500_000, "{bytes} bytes");
    }
}
