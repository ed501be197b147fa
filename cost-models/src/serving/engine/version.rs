//! Engines named with a release: `vllm@0.12`.
//!
//! A profile stands for a span of releases of one engine ([`Releases`]); a release inside it may differ in single numbers
//! ([`super::Release`]). A name without a release means the newest.

use super::{EngineParameters, EngineProfile, engines};
use psim_models::serving::NumberFormat;
use serde::{Deserialize, Serialize};

/// Major and minor number of a release.
pub type Version = [u32; 2];

/// Releases of one engine that a profile stands for, first and last included.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Releases {
    /// Name of the engine, the same in all its eras (`vllm`).
    pub engine: String,
    /// First release.
    pub first: Version,
    /// Last release that the profile's numbers have seen.
    pub last: Version,
}

/// Why a name with a release is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VersionError {
    /// No profile of that name, nor an engine of several eras.
    #[error("there is no serving engine `{0}`")]
    Engine(String),
    /// What stands behind the `@` is not a release.
    #[error("`{0}` is not a release; a release is major.minor, as in `vllm@0.12`")]
    Unreadable(String),
    /// The engine has one set of numbers, whatever its release.
    #[error("{0} has one set of numbers and is named without a release")]
    Unversioned(String),
    /// A release that no profile stands for.
    #[error("release {} of {engine} is not known; known: {known}", dotted(*version))]
    Unknown {
        /// Engine or profile.
        engine: String,
        /// The release asked for.
        version: Version,
        /// Spans that are known, oldest first.
        known: String,
    },
}

/// `0.12` of `[0, 12]`.
pub fn dotted(version: Version) -> String {
    format!("{}.{}", version[0], version[1])
}

/// Reads `0.12`, `v0.12.1` or `1.2.0rc2`; what follows the minor number does not matter.
fn parse(text: &str) -> Option<Version> {
    let text = text.strip_prefix('v').unwrap_or(text);
    let mut parts = text.splitn(3, '.');
    let major = parts.next()?.parse().ok()?;
    let minor = parts.next()?;
    let digits = minor.find(|c: char| !c.is_ascii_digit()).unwrap_or(minor.len());
    Some([major, minor[..digits].parse().ok()?])
}

/// An engine profile by the name of a profile (`vllm-v1`) or of an engine (`vllm`, its newest era), either with a release
/// (`vllm@0.12`), which then picks the era and holds for its numbers.
///
/// # Errors
/// Names and releases that no built-in profile stands for, with those that one does.
pub fn named(text: &str) -> Result<EngineProfile, VersionError> {
    let (name, version) = match text.split_once('@') {
        None => (text, None),
        Some((name, version)) => (name, Some(version)),
    };
    let own = engines().iter().filter(|e| e.name == name);
    let mut eras: Vec<&EngineProfile> = own.collect();
    if eras.is_empty() {
        let of = |e: &&EngineProfile| e.releases.as_ref().is_some_and(|r| r.engine == name);
        eras = engines().iter().filter(of).collect();
    }
    eras.sort_by_key(|e| e.releases.as_ref().map(|r| r.first));
    let Some(newest) = eras.last() else { return Err(VersionError::Engine(name.to_owned())) };
    let Some(version) = version else { return Ok((*newest).clone()) };
    let version = parse(version).ok_or_else(|| VersionError::Unreadable(version.to_owned()))?;
    let spans: Vec<(&EngineProfile, &Releases)> =
        eras.iter().filter_map(|e| Some((*e, e.releases.as_ref()?))).collect();
    if spans.is_empty() {
        return Err(VersionError::Unversioned(name.to_owned()));
    }
    match spans.iter().find(|(_, r)| (r.first..=r.last).contains(&version)) {
        Some((era, _)) => Ok(EngineProfile {
            name: format!("{}@{}", era.name, dotted(version)),
            version: Some(version),
            ..(*era).clone()
        }),
        None => Err(VersionError::Unknown { engine: name.to_owned(), version, known: known(&spans) }),
    }
}

fn known(spans: &[(&EngineProfile, &Releases)]) -> String {
    let one = |(era, r): &(&EngineProfile, &Releases)| {
        let span = if r.first == r.last {
            dotted(r.first)
        } else {
            format!("{} to {}", dotted(r.first), dotted(r.last))
        };
        format!("{span} ({})", era.name)
    };
    spans.iter().map(one).collect::<Vec<_>>().join(", ")
}

impl EngineProfile {
    /// The numbers on an accelerator with experts of a format (`None`: no experts), as the profile's release has them.
    pub fn numbers(&self, accelerator: &str, experts: Option<NumberFormat>) -> EngineParameters {
        self.released(self.version, self.on(accelerator).0, accelerator, experts)
    }

    /// `numbers` of the era as a release has them; `None` is the newest.
    pub fn released(
        &self,
        version: Option<Version>,
        mut numbers: EngineParameters,
        accelerator: &str,
        experts: Option<NumberFormat>,
    ) -> EngineParameters {
        let table = version.and_then(|[major, minor]| self.deltas((major, minor), experts, accelerator));
        for (name, value) in table.iter().flat_map(|t| &t.parameters) {
            numbers.set(name, *value);
        }
        numbers
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serving::engine::find;

    #[test]
    fn releases_pick_the_era_and_its_numbers() {
        let named = |text: &str| named(text).unwrap_or_else(|e| panic!("{e}"));
        for (text, era, version) in [
            ("vllm@0.12", "vllm-v1@0.12", Some([0, 12])),
            ("vllm@v0.12.0", "vllm-v1@0.12", Some([0, 12])),
            ("vllm-v1@0.12", "vllm-v1@0.12", Some([0, 12])),
            ("vllm@0.6.3", "vllm-2024@0.6", Some([0, 6])),
            ("trtllm@1.0.0rc3", "trtllm-1.0@1.0", Some([1, 0])),
            ("trtllm@0.9", "trtllm-static@0.9", Some([0, 9])),
            ("vllm", "vllm-v1", None),
            ("trtllm", "trtllm-1.0", None),
            ("sglang", "sglang", None),
            ("orca", "orca", None),
        ] {
            let found = named(text);
            assert_eq!((found.name.as_str(), found.version), (era, version), "{text}");
            // What is printed can be read again.
            assert_eq!(named(era), found);
        }
        let block = Some(NumberFormat::Fp8Block);
        let gpu = "H200-SXM-141GB";
        let newest = find("vllm-v1").unwrap().numbers(gpu, block);
        assert_eq!(named("vllm@0.19").numbers(gpu, block), newest);
        assert_eq!(named("vllm@0.12").numbers(gpu, block).expert_rows, 128.0);
        assert!(named("vllm@0.15").numbers(gpu, block).moe_us > newest.moe_us);
        // Other experts, or none, did not change.
        assert_eq!(named("vllm@0.12").numbers(gpu, None), find("vllm-v1").unwrap().numbers(gpu, None));
    }

    #[test]
    fn unknown_releases_name_the_known_ones() {
        let error = |text: &str| named(text).unwrap_err().to_string();
        let unknown = error("vllm@7.1");
        for part in ["7.1", "0.1 to 0.2 (vllm-2023)", "0.3 to 0.7 (vllm-2024)", "(vllm-v1)"] {
            assert!(unknown.contains(part), "{unknown}");
        }
        // A profile stands for its own releases only.
        assert!(error("vllm-v1@0.6").contains("0.8 to"));
        assert!(error("vllm@newest").contains("major.minor"));
        assert!(error("orca@1.0").contains("without a release"));
        assert_eq!(named("nothing@1.0"), Err(VersionError::Engine("nothing".to_owned())));
    }

    #[test]
    fn eras_of_an_engine_do_not_overlap() {
        let spans: Vec<&Releases> = engines().iter().filter_map(|e| e.releases.as_ref()).collect();
        assert!(spans.len() >= 8);
        for (i, a) in spans.iter().enumerate() {
            assert!(a.first <= a.last);
            for b in spans.iter().skip(i + 1).filter(|b| b.engine == a.engine) {
                assert!(a.last < b.first || b.last < a.first, "{a:?} {b:?}");
            }
        }
        for engine in engines() {
            for table in &engine.release {
                let span = engine.releases.as_ref().unwrap();
                assert!((span.first..=span.last).contains(&table.before), "{}: {table:?}", engine.name);
                assert!(table.before > span.first, "{}: holds for no release", engine.name);
            }
        }
    }
}
