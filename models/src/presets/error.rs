//! Why a name gave no model.

use crate::hf::HfError;

/// Why a name gave no model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PresetError {
    /// No preset has this name.
    #[error("unknown model `{name}`{}", suggestions(.nearest))]
    Unknown {
        /// What was asked for.
        name: String,
        /// Presets with similar names, best first.
        nearest: Vec<String>,
    },
    /// A remark in parentheses after the name that psim does not understand.
    #[error("`{remark}` after the model name is not understood; known is `(N layers)`")]
    Remark {
        /// The remark.
        remark: String,
    },
    /// More or fewer layers asked for than the model can give.
    #[error("`{name}` has {available} layers, not {requested}")]
    Layers {
        /// The preset.
        name: String,
        /// Layers asked for.
        requested: u64,
        /// Layers that it has.
        available: u32,
    },
    /// Dimensions that make no model.
    #[error(transparent)]
    Dimensions(#[from] HfError),
    /// The embedded catalogue is broken: a bug of psim.
    #[error("internal: the catalogue of models cannot be read: {0}")]
    Catalogue(String),
}

fn suggestions(nearest: &[String]) -> String {
    if nearest.is_empty() { String::new() } else { format!("; did you mean {}?", nearest.join(", ")) }
}

impl PresetError {
    /// What to do about it.
    pub fn hint(&self) -> String {
        match self {
            Self::Dimensions(error) => error.hint(),
            Self::Catalogue(_) => "please report this as a bug".to_owned(),
            Self::Layers { available, .. } => format!("ask for 1 to {available} layers"),
            Self::Unknown { .. } | Self::Remark { .. } => {
                "`psim show models` lists the presets; a path to a Hugging Face config.json works too"
                    .to_owned()
            }
        }
    }
}
