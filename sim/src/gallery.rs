//! The gallery: techniques of the field, each with a scenario that is simulated and held against a number.
//!
//! A scenario is a text file (`data/gallery/*.toml`): where the technique was published, what was run, an expectation
//! derived by hand, the published number where there is one, and the runs to simulate. [`results`] simulates all of
//! them; `psim gallery` prints what it returns. To add one, write the file and name it in `gallery/list.rs`.

mod arrangements;
mod deployments;
mod drafts;
mod list;
mod runs;
mod serving;
mod split;
mod training;
mod transfers;

use serde::{Deserialize, Serialize};

/// A scenario as its file describes it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Scenario {
    /// Version of the layout of the file.
    pub schema: u32,
    /// Name, unique in the gallery.
    pub name: String,
    /// The technique that it shows.
    pub technique: String,
    /// Where the number was published, with section, table or file.
    pub source: String,
    /// What the numbers are, with the unit (`requests/s, chunked over prefill priority`).
    pub quantity: String,
    /// The published number; absent where the source gives none for a known set-up.
    pub published: Option<f64>,
    /// Relative tolerance about the published number.
    #[serde(default = "default_tolerance")]
    pub tolerance: f64,
    /// What the mechanism gives by hand.
    pub derived: f64,
    /// Relative tolerance about the derived number: what the derivation leaves out.
    #[serde(default = "default_tolerance")]
    pub derived_tolerance: f64,
    /// The derivation, in words and figures.
    pub expectation: String,
    /// Why a published number is missed, where it is known to be.
    #[serde(default)]
    pub known_gap: String,
}

fn default_tolerance() -> f64 {
    0.2
}

/// What the comparison says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Within the tolerance of the published number.
    Reproduced,
    /// No number is published; within the tolerance of the hand derivation.
    AsDerived,
    /// Outside the tolerance.
    Differs,
}

impl Verdict {
    /// Its name, as in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Reproduced => "reproduced",
            Self::AsDerived => "as-derived",
            Self::Differs => "differs",
        }
    }
}

/// A simulated scenario.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ScenarioResult {
    /// What was asked.
    #[serde(flatten)]
    pub scenario: Scenario,
    /// What the simulation gives.
    pub simulated: f64,
    /// Against the published number, or the derivation where none is published.
    pub verdict: Verdict,
}

impl ScenarioResult {
    fn new(scenario: Scenario, simulated: f64) -> Self {
        let near = |wanted: f64, tolerance: f64| (simulated / wanted - 1.0).abs() <= tolerance;
        let verdict = match scenario.published {
            Some(published) if near(published, scenario.tolerance) => Verdict::Reproduced,
            None if near(scenario.derived, scenario.derived_tolerance) => Verdict::AsDerived,
            _ => Verdict::Differs,
        };
        Self { scenario, simulated, verdict }
    }

    /// The simulation agrees with the hand derivation.
    pub fn as_derived(&self) -> bool {
        (self.simulated / self.scenario.derived - 1.0).abs() <= self.scenario.derived_tolerance
    }
}

/// Why a scenario gives no number.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GalleryError {
    /// No such name.
    #[error("`{name}` is not in the gallery; known: {known}")]
    Unknown {
        /// What was asked for.
        name: String,
        /// What there is.
        known: String,
    },
    /// A file of the gallery is wrong, or its runs cannot be simulated.
    #[error("scenario `{name}`: {reason}")]
    Broken {
        /// Which.
        name: String,
        /// Why.
        reason: String,
    },
}

/// A scenario of the gallery: the text of its file.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    /// File name without its ending: the scenario's name.
    pub name: &'static str,
    /// The file.
    pub text: &'static str,
}

impl Entry {
    /// Reads the description.
    ///
    /// # Errors
    /// A file that is not a scenario.
    pub fn scenario(&self) -> Result<Scenario, GalleryError> {
        toml::from_str(self.text).map_err(|e| self.broken(e.to_string()))
    }

    /// Simulates the scenario.
    ///
    /// # Errors
    /// A file that is not a scenario, runs that cannot be simulated.
    pub fn result(&self) -> Result<ScenarioResult, GalleryError> {
        let scenario = self.scenario()?;
        let table: toml::Table = toml::from_str(self.text).map_err(|e| self.broken(e.to_string()))?;
        let simulated = simulate(&table).map_err(|reason| self.broken(reason))?;
        Ok(ScenarioResult::new(scenario, simulated))
    }

    fn broken(&self, reason: String) -> GalleryError {
        GalleryError::Broken { name: self.name.to_owned(), reason }
    }
}

/// Simulates a scenario that is not in the gallery, from the text of its file.
///
/// # Errors
/// A file that is not a scenario, runs that cannot be simulated.
pub fn from_text(text: &str) -> Result<ScenarioResult, GalleryError> {
    let broken = |name: &str, reason: String| GalleryError::Broken { name: name.to_owned(), reason };
    let scenario: Scenario = toml::from_str(text).map_err(|e| broken("?", e.to_string()))?;
    let table: toml::Table = toml::from_str(text).map_err(|e| broken(&scenario.name, e.to_string()))?;
    let simulated = simulate(&table).map_err(|reason| broken(&scenario.name, reason))?;
    Ok(ScenarioResult::new(scenario, simulated))
}

/// The number of a scenario, by the kind that its file names; without one it is a serving run.
fn simulate(table: &toml::Table) -> Result<f64, String> {
    match table.get("kind").and_then(toml::Value::as_str) {
        None => serving::simulate(table),
        Some("training") => training::training(table),
        Some("pipeline") => training::pipeline(table),
        Some(_) => deployments::simulate(table),
    }
}

/// Every scenario.
pub fn entries() -> &'static [Entry] {
    list::ENTRIES
}

/// The scenarios of these names, in this order; all of them where none is named. A name that ends in `*` stands for all
/// that begin with it.
///
/// # Errors
/// A name that is not in the gallery, with those that are.
pub fn select(names: &[String]) -> Result<Vec<Entry>, GalleryError> {
    if names.is_empty() {
        return Ok(entries().to_vec());
    }
    let mut chosen = Vec::new();
    for name in names {
        let before = chosen.len();
        match name.strip_suffix('*') {
            Some(start) => chosen.extend(entries().iter().filter(|e| e.name.starts_with(start))),
            None => chosen.extend(entries().iter().filter(|e| e.name == name)),
        }
        if chosen.len() == before {
            let known: Vec<&str> = entries().iter().map(|e| e.name).collect();
            return Err(GalleryError::Unknown { name: name.clone(), known: known.join(", ") });
        }
    }
    Ok(chosen)
}

/// Simulates the scenarios of these names; see [`select`].
///
/// # Errors
/// An unknown name; a scenario that is wrong.
pub fn results(names: &[String]) -> Result<Vec<ScenarioResult>, GalleryError> {
    select(names)?.iter().map(Entry::result).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_match_their_files() {
        for (i, entry) in entries().iter().enumerate() {
            let scenario = entry.scenario().unwrap();
            assert_eq!(scenario.name, entry.name);
            assert_eq!(scenario.schema, 1);
            assert!(scenario.expectation.len() > 80, "{}: an expectation is derived, not stated", entry.name);
            assert!(entries()[i + 1..].iter().all(|e| e.name != entry.name), "{}", entry.name);
        }
    }

    #[test]
    fn every_scenario_comes_out_as_derived_by_hand() {
        let mut wrong = Vec::new();
        for entry in entries() {
            let result = match entry.result() {
                Ok(result) => result,
                Err(error) => {
                    wrong.push(error.to_string());
                    continue;
                }
            };
            let s = &result.scenario;
            let line = format!(
                "{}: simulated {:.4}, derived {}, published {:?}",
                s.name, result.simulated, s.derived, s.published
            );
            if !result.as_derived() {
                wrong.push(line.clone());
            }
            // A published number is reached, or the file says why not.
            if s.published.is_some() && (result.verdict == Verdict::Differs) == s.known_gap.is_empty() {
                wrong.push(format!("{line}: verdict {:?}, known gap `{}`", result.verdict, s.known_gap));
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }

    #[test]
    fn unknown_names_are_refused_with_the_list() {
        let error = select(&["nothing".to_owned()]).unwrap_err().to_string();
        assert!(error.contains("nothing") && error.contains(entries()[0].name), "{error}");
        assert_eq!(select(&[]).unwrap().len(), entries().len());
    }

    #[test]
    fn a_file_outside_the_gallery_is_simulated_alike() {
        let entry = entries().iter().find(|e| e.name == "tpi-llm-star").unwrap();
        assert_eq!(from_text(entry.text).unwrap(), entry.result().unwrap());
        assert!(from_text("schema = 1").is_err());
    }

    #[test]
    fn verdicts() {
        let mut scenario = entries()[0].scenario().unwrap();
        (scenario.published, scenario.tolerance) = (Some(2.0), 0.1);
        assert_eq!(ScenarioResult::new(scenario.clone(), 2.19).verdict, Verdict::Reproduced);
        assert_eq!(ScenarioResult::new(scenario.clone(), 2.21).verdict, Verdict::Differs);
        assert_eq!(ScenarioResult::new(scenario.clone(), f64::NAN).verdict, Verdict::Differs);
        (scenario.published, scenario.derived) = (None, 3.0);
        assert_eq!(ScenarioResult::new(scenario, 3.1).verdict, Verdict::AsDerived);
    }
}
