//! What a loop has decided and done, kept so that a killed loop goes on where it stopped.

use crate::Host;
use crate::failure::Failure;
use crate::machine::hinted;
use crate::progress::Bar;
use psim_calibration::measure::MeasureError;
use psim_calibration::measure::journal::{Header, Journal};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// A record of one executed plan.
pub(super) trait Ran: Clone + Serialize + DeserializeOwned {
    /// What names a plan of this kind.
    type Plan: Clone + PartialEq + Serialize + DeserializeOwned;

    /// The plan that ran.
    fn plan(&self) -> &Self::Plan;
}

/// A line of the journal.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Entry<P, R> {
    /// What the loop decided to run, best first.
    Chosen(Vec<P>),
    /// One of them ran.
    Ran(Box<R>),
}

/// Which loop a journal belongs to.
pub(super) struct Question<'a> {
    /// `closed loop` or `serving loop`.
    pub(super) title: &'a str,
    /// Fingerprint of everything that was asked.
    pub(super) fingerprint: u32,
    /// The residual profile, beside which the journal lies.
    pub(super) residuals: &'a Path,
}

/// The plans that ran.
pub(super) struct Executed<R: Ran> {
    /// In the order of running.
    pub(super) rans: Vec<R>,
    /// How many of them an interrupted loop had run before.
    pub(super) resumed: usize,
    journal: Journal<Entry<R::Plan, R>>,
}

impl<R: Ran> Executed<R> {
    /// Removes what nobody needs once the residual profile is written.
    ///
    /// # Errors
    /// What the disk says.
    pub(super) fn finish(&mut self) -> Result<(), Failure> {
        self.journal.finish().map_err(|e| Failure::input(e.to_string(), "check the free space"))
    }

    /// ` (2 before this loop was interrupted)`, or nothing.
    pub(super) fn resumed_in_words(&self) -> String {
        match self.resumed {
            0 => String::new(),
            n => format!(" ({n} before this loop was interrupted)"),
        }
    }
}

/// Runs what the loop chose and has not run yet.
///
/// # Errors
/// A journal that cannot be read or written, or a plan that does not run.
pub(super) fn execute<R: Ran>(
    question: &Question<'_>,
    best: impl Iterator<Item = R::Plan>,
    label: impl Fn(&R::Plan) -> String,
    run: impl Fn(&R::Plan) -> Result<R, Failure>,
    host: &Host<'_>,
) -> Result<Executed<R>, Failure> {
    let path = path(&host.path(question.residuals), question.fingerprint);
    let header = Header::new(&format!("{} {:08x}", question.title, question.fingerprint));
    let failed = |e: MeasureError| hinted(&e.to_string(), "remove the journal to start anew");
    let (mut journal, entries) = Journal::<Entry<R::Plan, R>>::open(&path, &header).map_err(failed)?;
    let mut chosen: Option<Vec<R::Plan>> = None;
    let mut rans: Vec<R> = Vec::new();
    for entry in entries {
        match entry {
            Entry::Chosen(plans) => chosen = Some(plans),
            Entry::Ran(ran) => rans.push(*ran),
        }
    }
    let chosen = match chosen {
        Some(plans) => plans,
        None => {
            let plans: Vec<R::Plan> = best.collect();
            journal.append(&Entry::Chosen(plans.clone())).map_err(failed)?;
            plans
        }
    };
    let resumed = rans.len();
    let bar = Bar::new(host.progress);
    for (done, plan) in chosen.iter().enumerate() {
        if rans.iter().any(|r| r.plan() == plan) {
            continue;
        }
        bar.show(&label(plan), done as f64 / chosen.len() as f64);
        let ran = run(plan)?;
        journal.append(&Entry::Ran(Box::new(ran.clone()))).map_err(failed)?;
        rans.push(ran);
    }
    bar.finish();
    Ok(Executed { rans, resumed, journal })
}

/// `residuals.toml.1a2b3c4d.journal`.
fn path(residuals: &Path, fingerprint: u32) -> PathBuf {
    let mut name = residuals.as_os_str().to_owned();
    name.push(format!(".{fingerprint:08x}.journal"));
    PathBuf::from(name)
}
