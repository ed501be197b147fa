//! Why a configuration was refused.

use std::fmt;

/// A configuration that cannot be read, with its file, the line where that is known, and a hint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HfError {
    /// Name that the caller gave the configuration (a file name or a model name).
    pub file: String,
    /// Line of the offending key or character, from 1.
    pub line: Option<usize>,
    /// What is wrong.
    pub problem: HfProblem,
}

/// What is wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HfProblem {
    /// Not JSON.
    #[error("not JSON: {0}")]
    Syntax(String),
    /// JSON, but not an object at the top.
    #[error("expected a JSON object with the keys of a Hugging Face config.json, found {0}")]
    NotAnObject(String),
    /// Neither `model_type` nor `architectures`.
    #[error("neither `model_type` nor `architectures` says what this is")]
    NoArchitecture,
    /// The quantisation file that lies beside a config.json (`hf_quant_config.json`), with its algorithm.
    #[error("this describes a quantisation ({0}), not a model")]
    QuantizationOnly(String),
    /// An architecture that psim does not know.
    #[error("unknown architecture `{0}`")]
    UnknownArchitecture(String),
    /// An architecture that psim knows and cannot express.
    #[error("architecture `{architecture}` is not supported: {reason}")]
    Unsupported {
        /// The `model_type`.
        architecture: String,
        /// What of it psim cannot express.
        reason: String,
    },
    /// A key that the family needs is absent.
    #[error("missing key `{key}`{alternatives}, which the family `{family}` needs")]
    MissingKey {
        /// The key, in the spelling of the family.
        key: String,
        /// Other spellings, as a phrase.
        alternatives: String,
        /// The `model_type`.
        family: String,
    },
    /// A key with a value of the wrong type or out of range.
    #[error("key `{key}` is {found}, expected {expected}")]
    BadValue {
        /// The key.
        key: String,
        /// The value, shortened.
        found: String,
        /// What would do.
        expected: String,
    },
    /// Keys that contradict each other.
    #[error("{0}")]
    Inconsistent(String),
}

impl HfError {
    /// What to do about it.
    pub fn hint(&self) -> String {
        match &self.problem {
            HfProblem::Syntax(_) | HfProblem::NotAnObject(_) => {
                "pass the config.json of a model, or the name of a preset (`psim show models`)".to_owned()
            }
            HfProblem::NoArchitecture | HfProblem::UnknownArchitecture(_) => {
                format!("psim understands model_type {}", super::model_types().join(", "))
            }
            HfProblem::QuantizationOnly(_) => {
                "pass the config.json that lies beside it, and the format of the weights by --precision"
                    .to_owned()
            }
            HfProblem::Unsupported { .. } => {
                "use a preset or a configuration of the same size in another family (`psim show models`)"
                    .to_owned()
            }
            HfProblem::MissingKey { family, .. } => {
                format!(
                    "compare with a released configuration of `{family}`; nested `text_config` is read too"
                )
            }
            HfProblem::BadValue { .. } | HfProblem::Inconsistent(_) => {
                "compare with the released configuration of the model".to_owned()
            }
        }
    }
}

impl fmt::Display for HfError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file)?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        write!(f, ": {}", self.problem)
    }
}

impl std::error::Error for HfError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.problem)
    }
}
