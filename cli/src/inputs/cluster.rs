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
    if let Some(cluster) = by_size(given)? {
        return Ok(cluster);
    }
    catalogue::cluster(given).cloned().map_err(|error| {
        let hint = match &error {
            catalogue::CatalogueError::Unknown { suggestion: Some(near), .. } => {
                format!("did you mean `{near}`? `psim show clusters` lists the built-in ones")
            }
            _ => "`psim show clusters` lists the built-in ones; ACCELERATORxNUMBER (h100x128) also works"
                .to_owned(),
        };
        Failure::input(format!("there is no file `{given}` and no built-in cluster of that name"), hint)
    })
}

/// `h100x128`: that many accelerators in their usual nodes, unless a built-in cluster has the name.
fn by_size(given: &str) -> Result<Option<Cluster>, Failure> {
    let stem = given.strip_suffix(".toml").unwrap_or(given);
    let Some((part, number)) = stem.rsplit_once(['x', 'X']) else { return Ok(None) };
    let Ok(number) = number.parse::<u32>() else { return Ok(None) };
    if catalogue::cluster(given).is_ok() || catalogue::datasheet(part).is_err() {
        return Ok(None);
    }
    if u64::from(number) > schema::MAX_ACCELERATORS {
        return Err(Failure::input(
            format!(
                "`{given}` has {number} accelerators, at most {} are supported",
                schema::MAX_ACCELERATORS
            ),
            "check the number",
        ));
    }
    let mut cluster = catalogue::homogeneous(part, number, &catalogue::HomogeneousOptions::default())
        .map_err(|e| Failure::input(format!("`{given}`: {e}"), e.hint()))?;
    stem.clone_into(&mut cluster.name);
    Ok(Some(cluster))
}
