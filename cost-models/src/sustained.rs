//! The built-in sustained shares, one small file for all accelerators.

use psim_hardware::profile::sustained::{FabricShare, Sustained};
use serde::Deserialize;
use std::sync::OnceLock;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct File {
    #[cfg_attr(not(test), expect(dead_code, reason = "only a test looks at it"))]
    schema: u32,
    #[serde(default)]
    pub(crate) accelerator: Vec<Sustained>,
    #[serde(default)]
    pub(crate) fabric: Vec<FabricShare>,
}

/// Every built-in entry; a file that does not parse counts as empty (a test asserts that it does).
pub(crate) fn built_in() -> &'static File {
    static PARSED: OnceLock<File> = OnceLock::new();
    PARSED.get_or_init(|| parse().unwrap_or(File { schema: 1, accelerator: Vec::new(), fabric: Vec::new() }))
}

fn parse() -> Result<File, toml::de::Error> {
    toml::from_str(include_str!("../data/sustained.toml"))
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_built_in_file_parses_and_stays_in_bounds() {
        let file = super::parse().unwrap();
        assert_eq!(file.schema, 1);
        for mut entry in file.accelerator {
            for key in super::Sustained::KEYS {
                let share = entry.share(key).unwrap();
                assert!(entry.set_share(key, share), "{} {key} = {share}", entry.accelerator);
            }
        }
    }
}
