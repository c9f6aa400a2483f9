"""Which rank a process is, as torchrun or srun say it in the environment."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from spintune.errors import RecipeError

_PORTS = 20_000, 30_000
"""Where the port of a slurm step comes from, unless MASTER_PORT names one."""


@dataclass(frozen=True)
class Place:
    """A process among those of a run.

    Attributes:
        rank, size: its number, and how many there are.
        local_rank, local_size: the same among those of its node; ``local_rank`` is the number of its GPU.
        address, port: where rank 0 is met.
        launcher: who started it.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    address: str
    port: int
    launcher: str

    @property
    def on_one_node(self) -> bool:
        """Whether all ranks share a node."""
        return self.local_size == self.size


def place_of(environment: Mapping[str, str]) -> Place | None:
    """The place that torchrun or srun gave this process; None for one that is alone.

    Raises RecipeError for a place that cannot be.
    """
    if "RANK" in environment and "WORLD_SIZE" in environment:
        if environment["WORLD_SIZE"] == "1":
            return None
        if "LOCAL_RANK" not in environment:
            raise RecipeError(
                "the environment has RANK and WORLD_SIZE but no LOCAL_RANK, the number of this process on its node; "
                "start the run with torchrun on each node, or unset RANK and WORLD_SIZE for one process"
            )
        names, launcher = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"), "torchrun"
    elif environment.get("SLURM_STEP_NUM_TASKS", "1") != "1":
        names, launcher = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE"), "srun"
    else:
        return None
    rank, size, local_rank = (_number(environment, name, launcher) for name in names[:3])
    local_size = _local_size(environment, names[3], launcher) if names[3] in environment else size
    if not (0 <= rank < size and 0 <= local_rank < local_size <= size):
        raise RecipeError(
            f"{launcher}: rank {rank} of {size}, {local_rank} of {local_size} on its node, cannot be; look at "
            f"{', '.join(names)} in the environment"
        )
    if launcher == "torchrun":
        address, port = environment.get("MASTER_ADDR", "127.0.0.1"), _number(environment, "MASTER_PORT", launcher)
    else:
        nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST", "")
        address = environment.get("MASTER_ADDR") or _first_node(nodes) or "127.0.0.1"
        port = int(environment.get("MASTER_PORT") or _port_of_job(environment))
    return Place(rank, size, local_rank, local_size, address, port, launcher)


def _number(environment: Mapping[str, str], name: str, launcher: str) -> int:
    found = re.match(r"\d+", environment.get(name, ""))
    if not found:
        raise RecipeError(f"{launcher}: the environment has no number {name}; start the ranks with torchrun or srun")
    return int(found[0])


def _local_size(environment: Mapping[str, str], name: str, launcher: str) -> int:
    """How many ranks this node has. Slurm lists all nodes: ``4(x2),3`` stands for 4, 4 and 3 tasks."""
    node, end = int(environment.get("SLURM_NODEID") or 0), 0
    for count, nodes in re.findall(r"(\d+)(?:\(x(\d+)\))?", environment[name]):
        end += int(nodes or 1)
        if node < end:
            return int(count)
    return _number(environment, name, launcher)


def _first_node(nodes: str) -> str:
    """The first of slurm's compressed list of nodes: ``rack[1-2]gpu[03-05,11],login`` gives ``rack1gpu03``."""
    first = re.match(r"(?:[^\[,]|\[[^\]]*+\])*+", nodes)
    return re.sub(r"\[([^\[\],-]++)[^\[\]]*+\]", r"\1", first[0]) if first else ""


def _port_of_job(environment: Mapping[str, str]) -> int:
    """A port that steps of other jobs are unlikely to have."""
    job, step = (int(environment.get(name, "0") or 0) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    begin, end = _PORTS
    return begin + (job * 7 + step) % (end - begin)
