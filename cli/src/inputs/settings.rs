//! `--set key=value`: changes one value of the software stack profile.

use crate::failure::Failure;
use psim_hardware::profile::StackProfile;
use psim_hardware::suggest::closest;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Applies `key=value` to a stack profile, by the key's dotted name (`overlap.tp=false`, `efficiency.gemm=0.9`).
pub(crate) fn apply(stack: &StackProfile, setting: &str) -> Result<StackProfile, Failure> {
    let Some((key, value)) = setting.split_once('=') else {
        return Err(Failure::input(
            format!("`--set {setting}` has no `=`"),
            "write --set key=value, for example --set overlap.tp=false",
        ));
    };
    let (key, value) = (key.trim(), value.trim());
    let bounded = psim_hardware::profile::stack::Parameter::find(key).is_some();
    if let (true, Ok(number)) = (bounded, value.parse::<f64>()) {
        let mut changed = stack.clone();
        changed.set_number(key, number).map_err(|e| {
            Failure::input(
                format!("`--set {setting}`: {e}"),
                "`psim show profiles NAME` prints the present values",
            )
        })?;
        return Ok(changed);
    }
    apply_to(stack, setting, "`psim show profiles NAME` prints the present values")
}

/// Applies `key=value` to any profile by the key's dotted name.
pub(crate) fn apply_to<T: Serialize + DeserializeOwned>(
    profile: &T,
    setting: &str,
    listed: &str,
) -> Result<T, Failure> {
    let Some((key, value)) = setting.split_once('=') else {
        return Err(Failure::input(
            format!("`--set {setting}` has no `=`"),
            "write --set key=value, for example --set token_budget=4096",
        ));
    };
    let (key, value) = (key.trim(), value.trim());
    let mut table = toml::Table::try_from(profile).map_err(Failure::defect)?;
    let known = keys(&table, "");
    if !known.iter().any(|k| k == key) {
        let hint = match closest(key, known.iter().map(String::as_str)) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("keys: {}", known.join(", ")),
        };
        return Err(Failure::input(format!("`--set {setting}`: there is no key `{key}`"), hint));
    }
    let parsed = value_of(value);
    replace(&mut table, key, parsed);
    table.try_into().map_err(|e: toml::de::Error| {
        Failure::input(format!("`--set {setting}`: {}", e.message().trim()), listed)
    })
}

/// A value as TOML would read it, else a string.
fn value_of(text: &str) -> toml::Value {
    toml::from_str::<toml::Table>(&format!("x = {text}"))
        .ok()
        .and_then(|mut t| t.remove("x"))
        .unwrap_or_else(|| toml::Value::String(text.to_owned()))
}

/// Dotted names of every value that is not a table or a list.
fn keys(table: &toml::Table, prefix: &str) -> Vec<String> {
    let mut out = Vec::new();
    for (name, value) in table {
        let path = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
        match value {
            toml::Value::Table(inner) => out.extend(keys(inner, &path)),
            toml::Value::Array(_) => {}
            _ => out.push(path),
        }
    }
    out
}

/// Puts a value at a dotted path that exists.
fn replace(table: &mut toml::Table, path: &str, value: toml::Value) {
    match path.split_once('.') {
        None => {
            table.insert(path.to_owned(), value);
        }
        Some((head, tail)) => {
            if let Some(toml::Value::Table(inner)) = table.get_mut(head) {
                replace(inner, tail, value);
            }
        }
    }
}
