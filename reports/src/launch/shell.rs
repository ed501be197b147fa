//! Shell scripts: a Slurm header that plain bash ignores, then torchrun.

use super::LaunchJob;

/// Header of a script: what it is for and how it is submitted.
pub(super) fn header(job: &LaunchJob<'_>, framework: &str) -> String {
    let (nodes, per_node) = job.nodes();
    format!(
        "#!/bin/bash
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node={per_node}
#SBATCH --exclusive
# {} on {} ({framework}): {}
# Written by psim. Under Slurm: sbatch FILE. Elsewhere: run it on every node with NODE_RANK and MASTER_ADDR set.
set -euo pipefail
",
        job.model.name,
        job.cluster.name,
        crate::plan_label(job.plan),
    )
}

/// The torchrun prefix in front of a program's arguments, for Slurm (one task a node, by srun) or by hand.
pub(super) fn torchrun(job: &LaunchJob<'_>) -> String {
    let (nodes, per_node) = job.nodes();
    // Ranks go node by node, so that tensor-parallel groups stay inside a node. A node's rank is known in its task only.
    format!(
        "RUN=\"\"
if [ -n \"${{SLURM_JOB_ID:-}}\" ]; then
  RUN=\"srun\"
  MASTER_ADDR=$(scontrol show hostnames \"$SLURM_JOB_NODELIST\" | head -n 1)
fi
export MASTER_ADDR=${{MASTER_ADDR:-localhost}} MASTER_PORT=${{MASTER_PORT:-29500}}
$RUN bash -c 'exec torchrun --nnodes {nodes} --nproc-per-node {per_node} \\
  --node-rank \"${{SLURM_NODEID:-${{NODE_RANK:-0}}}}\" --master-addr \"$MASTER_ADDR\" --master-port \"$MASTER_PORT\" \"$@\"' \\
  torchrun"
    )
}

/// An option per line, continued; the last line ends the command.
pub(super) fn options(lines: &[String]) -> String {
    lines.iter().map(|l| format!(" \\\n  {l}")).collect::<String>() + "\n"
}
