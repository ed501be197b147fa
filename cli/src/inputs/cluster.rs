//! `--cluster`: a file, or the name of a built-in cluster.

use crate::Host;
use crate::failure::Failure;
use crate::files::read_text;
use psim_hardware::source_error::MAX_FILE_BYTES;
use psim_hardware::{Cluster, catalogue, schema};
use std::path::Path;

/// Loads a cluster: the file of that name if there is one, else the built-in one.
pub(crate) fn load(host: &Host<'_>, given: &str) -> Result<Cluster, Failure> {
    let path = Path::new(given);
    if given.trim().is_empty() {
        return Err(Failure::input(
            "the cluster has no name",
            "`psim show clusters` lists the built-in ones",
        ));
    }
    if host.path(path).exists() {
        let text = read_text(host, path, "cluster description", MAX_FILE_BYTES)?;
        return Ok(schema::parse_cluster(given, &text)?);
    }
    if path.components().count() > 1 {
        return Err(Failure::input(
            format!("there is no file `{given}` (cluster description)"),
            "check the path, or give the plain name of a built-in cluster (`psim show clusters`)",
        ));
    }
    catalogue::cluster(given).cloned().map_err(|error| {
        let hint = match &error {
            catalogue::CatalogueError::Unknown { suggestion: Some(near), .. } => {
                format!("did you mean `{near}`? `psim show clusters` lists the built-in ones")
            }
            _ => "`psim show clusters` lists the built-in ones".to_owned(),
        };
        Failure::input(format!("there is no file `{given}` and no built-in cluster of that name"), hint)
    })
}
