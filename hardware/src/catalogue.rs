//! The built-in catalogue: accelerators, node types and clusters, embedded from `hardware/data`.
//!
//! Names are compared without case; `_` and spaces count as `-`; a cluster name may end in `.toml`.

mod datasheet;
mod embedded;
mod homogeneous;
mod system;

pub use datasheet::Datasheet;
pub use homogeneous::{HomogeneousOptions, homogeneous};
pub use system::{System, SystemNics, SystemScaleUp, default_fabric_latency};

use crate::source_error::parse_toml;
use crate::{Accelerator, Cluster, suggest};
use serde::de::DeserializeOwned;
use std::sync::LazyLock;

/// Why a catalogue entry cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CatalogueError {
    /// No such name.
    #[error("there is no {kind} `{name}`")]
    Unknown {
        /// `accelerator`, `system` or `cluster`.
        kind: &'static str,
        /// What was asked for.
        name: String,
        /// The nearest known name.
        suggestion: Option<String>,
        /// Every canonical name.
        known: Vec<String>,
    },
    /// The entry exists, but lacks facts that a prediction needs.
    #[error("accelerator `{name}` cannot be used: {reason}")]
    Unusable {
        /// Canonical name.
        name: String,
        /// What is missing, and why.
        reason: String,
    },
    /// The accelerators cannot be arranged in equal nodes.
    #[error("{message}")]
    Arrangement {
        /// What does not fit.
        message: String,
    },
}

impl CatalogueError {
    /// What to do about it.
    pub fn hint(&self) -> String {
        match self {
            Self::Unknown { suggestion: Some(near), .. } => format!("did you mean `{near}`?"),
            Self::Unknown { kind, known, .. } => format!("known {kind}s: {}", known.join(", ")),
            Self::Unusable { .. } => {
                "describe the part yourself: an [[accelerator]] table in the cluster file".to_owned()
            }
            Self::Arrangement { .. } => "give the accelerators per node, or write a cluster file".to_owned(),
        }
    }
}

/// Reads every embedded file of a kind. They are part of the program: a fault is a defect found by the tests.
fn read_all<T: DeserializeOwned>(files: &[(&str, &str)]) -> Vec<T> {
    files
        .iter()
        .map(|(path, text)| match parse_toml(path, text, "catalogue entry", 1, "") {
            Ok(value) => value,
            Err(error) => panic!("embedded file: {error}"),
        })
        .collect()
}

static DATASHEETS: LazyLock<Vec<Datasheet>> = LazyLock::new(|| read_all(embedded::ACCELERATORS));
static ACCELERATORS: LazyLock<Vec<Accelerator>> =
    LazyLock::new(|| DATASHEETS.iter().filter_map(|d| d.accelerator().ok()).collect());
static SYSTEMS: LazyLock<Vec<System>> = LazyLock::new(|| read_all(embedded::SYSTEMS));
static CLUSTERS: LazyLock<Vec<Cluster>> = LazyLock::new(|| {
    embedded::CLUSTERS
        .iter()
        .map(|(path, text)| match crate::schema::parse_cluster(path, text) {
            Ok(cluster) => cluster,
            Err(error) => panic!("embedded file: {error}"),
        })
        .collect()
});

/// The spelling under which names are compared.
pub(crate) fn normal(name: &str) -> String {
    name.trim().to_lowercase().replace(['_', ' '], "-")
}

/// Finds `name` among entries with a canonical name and aliases.
fn find<'a, T>(
    kind: &'static str,
    name: &str,
    entries: &'a [T],
    names: impl Fn(&'a T) -> (&'a str, &'a [String]),
) -> Result<&'a T, CatalogueError> {
    let wanted = normal(name);
    let hit = entries.iter().find(|e| {
        let (canonical, aliases) = names(e);
        normal(canonical) == wanted || aliases.iter().any(|a| normal(a) == wanted)
    });
    hit.ok_or_else(|| {
        let all = entries.iter().flat_map(|e| {
            let (canonical, aliases) = names(e);
            std::iter::once(canonical).chain(aliases.iter().map(String::as_str))
        });
        CatalogueError::Unknown {
            kind,
            name: name.chars().take(80).collect(),
            suggestion: suggest::closest(&wanted, all).map(str::to_owned),
            known: entries.iter().map(|e| names(e).0.to_owned()).collect(),
        }
    })
}

/// Every datasheet, also those too incomplete to simulate.
pub fn datasheets() -> &'static [Datasheet] {
    &DATASHEETS
}

/// The datasheet of an accelerator by name or alias.
///
/// # Errors
/// [`CatalogueError::Unknown`] with the nearest name.
pub fn datasheet(name: &str) -> Result<&'static Datasheet, CatalogueError> {
    find("accelerator", name, datasheets(), |d| (&d.name, &d.aliases))
}

/// Every accelerator that can be simulated.
pub fn accelerators() -> &'static [Accelerator] {
    &ACCELERATORS
}

/// An accelerator by name or alias.
///
/// # Errors
/// Unknown names, and parts whose public facts do not suffice.
pub fn accelerator(name: &str) -> Result<&'static Accelerator, CatalogueError> {
    let sheet = datasheet(name)?;
    match accelerators().iter().find(|a| a.name == sheet.name) {
        Some(accelerator) => Ok(accelerator),
        None => Err(CatalogueError::Unusable {
            name: sheet.name.clone(),
            reason: sheet.accelerator().err().unwrap_or_default(),
        }),
    }
}

/// Every node type.
pub fn systems() -> &'static [System] {
    &SYSTEMS
}

/// A node type by name or alias.
///
/// # Errors
/// [`CatalogueError::Unknown`] with the nearest name.
pub fn system(name: &str) -> Result<&'static System, CatalogueError> {
    find("system", name, systems(), |s| (&s.name, &s.aliases))
}

/// Every built-in cluster.
pub fn clusters() -> &'static [Cluster] {
    &CLUSTERS
}

/// A built-in cluster by name, with or without `.toml`.
///
/// # Errors
/// [`CatalogueError::Unknown`] with the nearest name.
pub fn cluster(name: &str) -> Result<&'static Cluster, CatalogueError> {
    let wanted = name.trim();
    let stem = if wanted.to_lowercase().ends_with(".toml") { &wanted[..wanted.len() - 5] } else { wanted };
    find("cluster", stem, clusters(), |c| (&c.name, &[]))
}

/// The text of a built-in cluster file, to start one's own from.
pub fn cluster_text(name: &str) -> Option<&'static str> {
    let stem = cluster(name).ok()?.name.as_str();
    let path = format!("clusters/{stem}.toml");
    embedded::CLUSTERS.iter().find(|(p, _)| *p == path).map(|(_, text)| *text)
}
