"""Which rank a process is, from the environment of torchrun and srun."""

import pytest

from spintune import ranks
from spintune.errors import RecipeError
from spintune.ranks.environment import place_of

TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "10.0.0.7",
    "MASTER_PORT": "29500",
}
SRUN = {
    "SLURM_PROCID": "5",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
    "SLURM_STEP_NODELIST": "gpu[03-04]",
    "SLURM_JOB_ID": "4711",
}


def test_alone() -> None:
    assert place_of({}) is None
    assert place_of({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"}) is None  # an sbatch script itself
    assert (ranks.rank(), ranks.world_size(), ranks.is_writer()) == (0, 1, True)
    assert ranks.from_writer({"a": 1}) == {"a": 1}
    assert ranks.all_sum([1.5, 2.0]) == [1.5, 2.0]
    ranks.barrier()


def test_launchers_agree() -> None:
    one, other = place_of(TORCHRUN), place_of(SRUN)
    assert one is not None
    assert other is not None
    assert (one.rank, one.size, one.local_rank, one.local_size) == (5, 8, 1, 4)
    assert (other.rank, other.size, other.local_rank, other.local_size) == (5, 8, 1, 4)
    assert (one.address, one.port) == ("10.0.0.7", 29500)
    assert not one.on_one_node
    assert other.address == "gpu03"
    assert place_of({**SRUN, "MASTER_ADDR": "gpu09", "MASTER_PORT": "1234"}).address == "gpu09"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("a", "a"),
        ("a,b", "a"),
        ("gpu[07,09-11]", "gpu07"),
        ("n[1-2]-ib,login", "n1-ib"),
        ("x[003]", "x003"),
        ("r[1-2]n[1-4],s[3-4]", "r1n1"),
        ("r[01,03-07]n[2]-ib,login", "r01n2-ib"),
    ],
)
def test_first_node(nodes: str, first: str) -> None:
    place = place_of({**SRUN, "SLURM_STEP_NODELIST": nodes})
    assert place is not None
    assert place.address == first


def test_jobs_have_ports_of_their_own() -> None:
    ports = {place_of({**SRUN, "SLURM_JOB_ID": str(job)}).port for job in range(1000, 1100)}  # type: ignore[union-attr]
    assert len(ports) == 100


@pytest.mark.parametrize("wrong", [{"RANK": "8"}, {"LOCAL_RANK": "4"}, {"WORLD_SIZE": "many"}])
def test_refuses_a_place_that_cannot_be(wrong: dict[str, str]) -> None:
    with pytest.raises(RecipeError, match="torchrun"):
        place_of({**TORCHRUN, **wrong})


def test_a_container_with_one_process_is_alone() -> None:
    """What Kubeflow gives the only replica of a PyTorchJob."""
    job = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "run-master-0", "MASTER_PORT": "23456"}
    assert place_of(job) is None
    with pytest.raises(RecipeError, match="no LOCAL_RANK") as refused:
        place_of({**job, "WORLD_SIZE": "2"})
    assert not str(refused.value).startswith("torchrun")


@pytest.mark.parametrize(
    ("tasks", "node", "local_size"),
    [("1,2", 0, 1), ("1,2", 1, 2), ("2,1", 1, 1), ("4(x2),3", 0, 4), ("4(x2),3", 1, 4), ("4(x2),3", 2, 3), ("8", 0, 8)],
)
def test_nodes_may_have_unequal_numbers_of_tasks(tasks: str, node: int, local_size: int) -> None:
    """The last task of each node."""
    place = place_of(
        {
            **SRUN,
            "SLURM_STEP_NUM_TASKS": "16",
            "SLURM_STEP_TASKS_PER_NODE": tasks,
            "SLURM_NODEID": str(node),
            "SLURM_LOCALID": str(local_size - 1),
        }
    )
    assert place is not None
    assert (place.local_rank, place.local_size) == (local_size - 1, local_size)
