//! Flags that several commands share: profiles, software stack, settings, threads.

use super::settings;
use crate::Host;
use crate::failure::Failure;
use crate::files::read_text;
use clap::Args;
use psim_cost_models::{ProfileLibrary, stacks};
use psim_hardware::profile::{AcceleratorProfile, FabricProfile, StackProfile};
use psim_hardware::source_error::{MAX_FILE_BYTES, parse_toml};
use psim_hardware::suggest::closest;
use std::path::{Path, PathBuf};

/// Flags common to plan, simulate, explain, compare, execute and validate.
#[derive(Debug, Clone, Args)]
pub(crate) struct CommonArguments {
    /// Profile of an accelerator, a fabric or a software stack, over the built-in one (repeatable)
    #[arg(long = "profile", value_name = "FILE")]
    pub(crate) profiles: Vec<PathBuf>,
    /// Software stack of training (`psim show profiles`) or engine of serving (`psim show engines`): a built-in name
    /// or a file
    #[arg(long, visible_alias = "engine", value_name = "NAME|FILE")]
    pub(crate) stack: Option<String>,
    /// Change one value of the software stack, such as overlap.tp=false (repeatable)
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) settings: Vec<String>,
    /// Print JSON with a `schema` key
    #[arg(long)]
    pub(crate) json: bool,
    /// Threads to search with (default: all cores)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub(crate) threads: Option<u16>,
    /// Seed of whatever is drawn by chance
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,
}

/// Profiles and stack, loaded.
#[derive(Debug)]
pub(crate) struct Software {
    /// Built-in profiles with the user's over them.
    pub(crate) library: ProfileLibrary,
    /// The stack with every `--set` applied.
    pub(crate) stack: StackProfile,
    /// Settings applied, as typed.
    pub(crate) settings: Vec<String>,
    /// The user chose the stack.
    pub(crate) stack_chosen: bool,
}

impl CommonArguments {
    /// Loads profiles and stack.
    pub(crate) fn software(&self, host: &Host<'_>) -> Result<Software, Failure> {
        let (library, last_stack) = self.library(host)?;
        let chosen = self.stack.clone().or(last_stack);
        let mut stack = match &chosen {
            None => built_in(&library, stacks::DEFAULT_TRAINING)?,
            Some(name) if host.path(Path::new(name)).is_file() => read_stack(host, Path::new(name))?,
            Some(name) => built_in(&library, name)?,
        };
        for setting in &self.settings {
            stack = settings::apply(&stack, setting)?;
        }
        Ok(Software { library, stack, settings: self.settings.clone(), stack_chosen: chosen.is_some() })
    }

    /// Built-in profiles with the user's over them, and the name of the last stack among the user's.
    pub(crate) fn library(&self, host: &Host<'_>) -> Result<(ProfileLibrary, Option<String>), Failure> {
        let mut library = ProfileLibrary::built_in();
        let mut last_stack = None;
        for path in &self.profiles {
            if let Some(name) = add_profile(host, path, &mut library)? {
                last_stack = Some(name);
            }
        }
        Ok((library, last_stack))
    }

    /// Runs `work` on the number of threads asked for.
    pub(crate) fn on_threads<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, Failure> {
        match self.threads {
            None => Ok(work()),
            Some(threads) => {
                let pool =
                    rayon::ThreadPoolBuilder::new().num_threads(usize::from(threads)).build().map_err(
                        |e| Failure::input(format!("cannot start {threads} threads: {e}"), "ask for fewer"),
                    )?;
                Ok(pool.install(work))
            }
        }
    }
}

/// A stack of the library by name.
pub(crate) fn built_in(library: &ProfileLibrary, name: &str) -> Result<StackProfile, Failure> {
    library.stack(name).cloned().ok_or_else(|| {
        let hint = match closest(name, library.stacks().map(|s| s.name.as_str())) {
            Some(near) => format!("did you mean `{near}`? `psim show profiles` lists them"),
            None => "`psim show profiles` lists the built-in ones".to_owned(),
        };
        Failure::input(format!("there is no software stack `{name}`, neither built in nor as a file"), hint)
    })
}

/// Reads the file of a software stack.
fn read_stack(host: &Host<'_>, path: &Path) -> Result<StackProfile, Failure> {
    let text = read_text(host, path, "stack profile", MAX_FILE_BYTES)?;
    Ok(parse_toml(&path.display().to_string(), &text, "stack profile", 1, STACK_HINT)?)
}

const STACK_HINT: &str = "`psim show profiles NAME` prints a built-in one to start from";

/// Adds a profile of whichever kind the file's keys say; returns the name of a stack.
fn add_profile(
    host: &Host<'_>,
    path: &Path,
    library: &mut ProfileLibrary,
) -> Result<Option<String>, Failure> {
    /// Fitted tables are longer than what people write.
    const LIMIT: usize = 64 << 20;
    let shown = path.display().to_string();
    let text = read_text(host, path, "profile", LIMIT)?;
    let table: toml::Table = toml::from_str(&text)
        .map_err(|e| psim_hardware::SourceError::from_toml(&shown, &text, &e, STACK_HINT))?;
    let toml_error =
        |e: &toml::de::Error| psim_hardware::SourceError::from_toml(&shown, &text, e, STACK_HINT);
    if table.contains_key("frameworks") {
        let stack: StackProfile = parse_toml(&shown, &text, "stack profile", 1, STACK_HINT)?;
        let name = stack.name.clone();
        library.add_stack(stack);
        return Ok(Some(name));
    }
    if table.contains_key("accelerator") {
        let profile: AcceleratorProfile = toml::from_str(&text).map_err(|e| toml_error(&e))?;
        library.add_accelerator(profile);
        return Ok(None);
    }
    if table.contains_key("kind") {
        let profile: FabricProfile = toml::from_str(&text).map_err(|e| toml_error(&e))?;
        library.add_fabric(profile);
        return Ok(None);
    }
    Err(Failure::input_at(
        "this is no profile: it has neither `frameworks` (software stack), `accelerator` nor `kind` (fabric)",
        shown,
        "`psim calibrate` writes accelerator profiles, `psim show profiles NAME` prints a stack to start from",
    ))
}
