//! The catalogue of presets.

use psim_models::presets;

#[test]
fn every_preset_and_alias_is_a_model() {
    for entry in presets::list().unwrap() {
        let model = presets::find(entry.name).unwrap_or_else(|e| panic!("{}: {e}", entry.name));
        assert_eq!(model.name, entry.name);
        for alias in &entry.aliases {
            assert_eq!(presets::find(alias).unwrap(), model, "{alias}");
        }
        println!("{} {} {}", entry.name, model.parameters().total, model.parameters().total_with_mtp());
    }
}
