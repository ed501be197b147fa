//! Which rank this process is: the variables that torchrun, Slurm, Open MPI and MPICH give every process they start.

use crate::error::{Result, unsupported};

/// Port of the meeting place where the launcher names none (torchrun's own default).
const DEFAULT_PORT: u16 = 29_500;

/// Who started this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Launcher {
    /// `RANK`, `WORLD_SIZE`: torchrun, and scripts that follow it.
    Torchrun,
    /// Open MPI's `mpirun`.
    OpenMpi,
    /// `mpiexec` of MPICH, Intel MPI or another with the PMI variables.
    Pmi,
    /// Slurm's `srun`.
    Slurm,
}

impl Launcher {
    /// As it is called.
    pub fn name(self) -> &'static str {
        match self {
            Self::Torchrun => "torchrun",
            Self::OpenMpi => "Open MPI's mpirun",
            Self::Pmi => "mpiexec (PMI)",
            Self::Slurm => "srun",
        }
    }

    /// Variables of (rank, world, local rank).
    fn variables(self) -> [&'static str; 3] {
        match self {
            Self::Torchrun => ["RANK", "WORLD_SIZE", "LOCAL_RANK"],
            Self::OpenMpi => ["OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"],
            Self::Pmi => ["PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"],
            Self::Slurm => ["SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"],
        }
    }
}

/// This process among those that were started together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    /// By whom.
    pub launcher: Launcher,
    /// This rank.
    pub rank: usize,
    /// Ranks in all.
    pub world: usize,
    /// Index among the ranks of this host: the device to take.
    pub local_rank: usize,
    /// Where rank 0 can be met: host and port.
    pub master: Option<(String, u16)>,
}

impl Launch {
    /// A world of one that nobody started.
    pub(crate) fn alone() -> Self {
        Self { launcher: Launcher::Torchrun, rank: 0, world: 1, local_rank: 0, master: None }
    }

    /// Reads the variables of this process; `None` where nobody set any.
    ///
    /// # Errors
    /// As [`Launch::read`].
    pub fn from_environment() -> Result<Option<Self>> {
        Self::read(|name| std::env::var(name).ok())
    }

    /// Reads the variables through `get`: torchrun's first (scripts set them on purpose), then those of the MPI
    /// launcher (which may itself run inside a Slurm job), then Slurm's.
    ///
    /// # Errors
    /// When variables are half set, are no numbers, or contradict each other; the message names them.
    pub fn read(get: impl Fn(&str) -> Option<String>) -> Result<Option<Self>> {
        for launcher in [Launcher::Torchrun, Launcher::OpenMpi, Launcher::Pmi, Launcher::Slurm] {
            let [rank_name, world_name, local_name] = launcher.variables();
            let (rank, world) = match (number(&get, rank_name)?, number(&get, world_name)?) {
                (None, None) => continue,
                // The batch script of a Slurm job has a process number, but no step: it was not started by `srun`.
                (Some(_), None) if launcher == Launcher::Slurm => continue,
                (Some(rank), Some(world)) => (rank, world),
                (rank, _) => {
                    let (set, unset) =
                        if rank.is_some() { (rank_name, world_name) } else { (world_name, rank_name) };
                    return unsupported(
                        format!("ranks from the environment: {set} is set and {unset} is not"),
                        "set both, or unset both to run ranks as threads",
                    );
                }
            };
            if world == 0 || rank >= world {
                return unsupported(
                    format!("{rank_name} = {rank} with {world_name} = {world}"),
                    "ranks count from 0 to the world size minus 1",
                );
            }
            let local_rank = number(&get, local_name)?.unwrap_or(0);
            return Ok(Some(Self { launcher, rank, world, local_rank, master: master(&get)? }));
        }
        Ok(None)
    }
}

fn number(get: &impl Fn(&str) -> Option<String>, name: &str) -> Result<Option<usize>> {
    match get(name) {
        None => Ok(None),
        Some(text) => match text.trim().parse() {
            Ok(value) => Ok(Some(value)),
            Err(_) => unsupported(
                format!("ranks from the environment: {name} = `{text}` is no whole number"),
                "the launcher sets it; unset it to run ranks as threads",
            ),
        },
    }
}

fn master(get: &impl Fn(&str) -> Option<String>) -> Result<Option<(String, u16)>> {
    let port = match number(get, "MASTER_PORT")? {
        None => DEFAULT_PORT,
        Some(port) => match u16::try_from(port) {
            Ok(port) if port > 0 => port,
            _ => return unsupported(format!("MASTER_PORT = {port}"), "ports go from 1 to 65535"),
        },
    };
    let host = get("MASTER_ADDR")
        .or_else(|| get("SLURM_LAUNCH_NODE_IPADDR"))
        .or_else(|| get("SLURM_STEP_NODELIST").and_then(|list| first_host(&list)))
        .filter(|host| !host.is_empty());
    Ok(host.map(|host| (host, port)))
}

/// First host of a Slurm list: `node[03-07,12],gpu1` starts with `node03`.
fn first_host(list: &str) -> Option<String> {
    let end = list.find([',', '[']).unwrap_or(list.len());
    let head = &list[..end];
    if list[end..].starts_with('[') {
        let inside = list[end + 1..].split([',', '-', ']']).next()?;
        return Some(format!("{head}{inside}"));
    }
    (!head.is_empty()).then(|| head.to_owned())
}

/// As many processes as ranks.
pub(crate) fn enough(processes: usize, ranks: usize) -> Result<()> {
    if processes == ranks {
        return Ok(());
    }
    unsupported(
        format!("{ranks} ranks on {processes} processes"),
        format!("start as many processes as the plan has ranks: `mpirun -n {ranks} psim execute …`"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn read(pairs: &[(&str, &str)]) -> Result<Option<Launch>> {
        let map: BTreeMap<_, _> = pairs.iter().copied().collect();
        Launch::read(|name| map.get(name).map(|v| (*v).to_owned()))
    }

    #[test]
    fn every_launcher_is_understood() {
        assert_eq!(read(&[]).unwrap(), None);
        let torchrun = read(&[
            ("RANK", "3"),
            ("WORLD_SIZE", "8"),
            ("LOCAL_RANK", "1"),
            ("MASTER_ADDR", "10.0.0.1"),
            ("MASTER_PORT", "1234"),
            ("SLURM_PROCID", "0"),
            ("SLURM_STEP_NUM_TASKS", "2"),
        ])
        .unwrap()
        .unwrap();
        assert_eq!(
            torchrun,
            Launch {
                launcher: Launcher::Torchrun,
                rank: 3,
                world: 8,
                local_rank: 1,
                master: Some(("10.0.0.1".to_owned(), 1234)),
            }
        );
        let open_mpi = [
            ("OMPI_COMM_WORLD_RANK", "1"),
            ("OMPI_COMM_WORLD_SIZE", "2"),
            ("OMPI_COMM_WORLD_LOCAL_RANK", "1"),
        ];
        let launch = read(&open_mpi).unwrap().unwrap();
        assert_eq!((launch.launcher, launch.rank, launch.master), (Launcher::OpenMpi, 1, None));
        let launch = read(&[("PMI_RANK", "0"), ("PMI_SIZE", "4")]).unwrap().unwrap();
        assert_eq!((launch.launcher, launch.world, launch.local_rank), (Launcher::Pmi, 4, 0));
        let slurm = [
            ("SLURM_PROCID", "5"),
            ("SLURM_STEP_NUM_TASKS", "16"),
            ("SLURM_LOCALID", "5"),
            ("SLURM_STEP_NODELIST", "gpu[07-08]"),
        ];
        let launch = read(&slurm).unwrap().unwrap();
        assert_eq!(launch.master, Some(("gpu07".to_owned(), DEFAULT_PORT)));
        assert_eq!((launch.rank, launch.local_rank), (5, 5));
    }

    #[test]
    fn a_batch_script_is_not_a_step() {
        assert_eq!(read(&[("SLURM_PROCID", "0"), ("SLURM_NTASKS", "8")]).unwrap(), None);
    }

    #[test]
    fn contradictions_are_named() {
        for (pairs, word) in [
            (&[("RANK", "1")][..], "WORLD_SIZE is not"),
            (&[("WORLD_SIZE", "2")], "RANK is not"),
            (&[("RANK", "2"), ("WORLD_SIZE", "2")], "RANK = 2"),
            (&[("RANK", "x"), ("WORLD_SIZE", "2")], "`x` is no whole number"),
            (&[("PMI_RANK", "0"), ("PMI_SIZE", "1"), ("MASTER_PORT", "70000")], "MASTER_PORT"),
        ] {
            let text = read(pairs).unwrap_err().to_string();
            assert!(text.contains(word) && text.contains("hint:"), "{text}");
        }
    }

    #[test]
    fn host_lists_start_somewhere() {
        for (list, first) in [("a", "a"), ("a,b", "a"), ("n[3-5]", "n3"), ("n[03,9],m1", "n03")] {
            assert_eq!(first_host(list).as_deref(), Some(first));
        }
        assert_eq!(first_host(""), None);
    }
}
