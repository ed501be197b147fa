//! What a deployment file means for a job: its layout, what runs beside it, speculation, on the cluster's nodes.

mod arrangement;
mod beside;
mod pools;
mod speculation;

use super::ServingJob;
use super::deployment::Deployed;
use super::deployment::file::File;
use crate::Host;
use crate::failure::Failure;
use psim_models::serving::Deployment;
use psim_planner::serving::{Layout, Served, Speculation};

impl Deployed {
    /// The speculation that a search is to try; the file has a [speculation] table and nothing else that it would not use.
    pub(crate) fn searched(&self, job: &ServingJob, host: &Host<'_>) -> Result<Speculation, Failure> {
        let bare = File { speculation: self.file.speculation.clone(), ..File::default() };
        if self.file != bare {
            let message =
                "`--speculation` takes a file with a [speculation] table and nothing else".to_owned();
            return Err(self.at("schema", message, "layouts are searched; `psim simulate --plan` runs one"));
        }
        let layout = Layout::Replicas(Deployment { quantization: job.quantization, ..self.replicas() });
        let found = speculation::searched(self, &layout, host)?;
        found.ok_or_else(|| self.at("schema", "there is no [speculation] table".to_owned(), "add one"))
    }

    /// What is served, on the job's cluster.
    pub(crate) fn served(&self, job: &ServingJob, host: &Host<'_>) -> Result<Served, Failure> {
        if let Some(name) = &self.file.device {
            let message =
                format!("requests on device `{name}` are not simulated: prompts have no measured laws there");
            return Err(self.at(
                "device",
                message,
                "`psim explain` prices its decoding steps; `psim gallery` compares devices",
            ));
        }
        let layout = match pools::split(self, job)? {
            Some(split) => Layout::Pools(split),
            None => Layout::Replicas(Deployment { quantization: job.quantization, ..self.replicas() }),
        };
        let served = Served {
            group: job.group,
            options: beside::options(self, job, &layout)?,
            speculation: speculation::read(self, &layout, host)?,
            arrangement: arrangement::read(self)?,
            redundant: arrangement::redundant(self)?,
            experts_outside: arrangement::outside(self, job)?,
            apart: arrangement::apart(self, job)?,
            layout,
        };
        let nodes = &job.cluster.groups[job.group];
        // Feed-forward instances on other nodes are counted there.
        let elsewhere = served.apart.filter(|a| a.group != job.group).map_or(0, |a| a.accelerators());
        let elsewhere = elsewhere * served.layout.deployment().replicas;
        let (need, have) = (served.accelerators() - elsewhere, nodes.count * nodes.node.accelerators);
        if matches!(layout, Layout::Replicas(_)) && need > have {
            let kind = if job.cluster.is_mixed() {
                format!(" of {}", nodes.node.accelerator.name)
            } else {
                String::new()
            };
            return Err(self.at(
                "replicas",
                format!("the deployment needs {need} accelerators{kind}, {} has {have}", job.cluster.name),
                "fewer replicas or ranks, or a larger cluster",
            ));
        }
        Ok(served)
    }
}
