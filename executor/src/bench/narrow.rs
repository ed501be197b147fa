//! A network of next to no arithmetic.

use psim_models::Model;
use psim_models::presets::{DenseDims, PresetError, dense};

/// A decoder so narrow that its kernels cost next to nothing beyond being called.
///
/// # Errors
/// Numbers that make no model.
pub(crate) fn narrow(layers: u32, vocab: u32) -> Result<Model, PresetError> {
    dense(&DenseDims {
        name: "narrow".to_owned(),
        layers: u64::from(layers),
        hidden: 32,
        heads: 2,
        ffn_hidden: Some(32),
        vocab: u64::from(vocab),
        ..DenseDims::default()
    })
}
