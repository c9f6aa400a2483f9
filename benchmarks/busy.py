"""What training, scoring and generation lose beside other work, on one core, and under a quota of processor time.

    python benchmarks/busy.py [--quick]      four minutes on 2 cores; --quick one minute

A process for each way of waiting at barriers (``POLICIES``) keeps a small model in memory. The processes take turns, a
piece of work each, so that whatever else the machine does meets all of them alike; tables show medians. The other work
are processes that compute without end. Each cell of the table has three numbers:

- milliseconds of a piece of work;
- the time by share: over the fastest time alone, times the share of the cores that is fair. With c cores, t threads
  and k busy processes that share is c / (t + k), or 1 where there are cores for all; a quota of q cores is a share of
  q / c. 1.00 is in proportion;
- processor time over that of the policy that needs least alone. What exceeds 1.00 was spent on waiting in loops.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from machine import busy_seconds, processor, threads

WORK = ("train", "score", "generate", "chat")
POLICIES: dict[str, dict[str, str]] = {
    "spintune": {},
    "libgomp": {"GOMP_SPINCOUNT": "300000"},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
}
"""Variables for a process. 300,000 rounds in a loop before it sleeps is what a thread of libgomp does by itself."""
CHOSEN = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS")
CGROUPS = (Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup/cpu,cpuacct"), Path("/sys/fs/cgroup"))
PERIOD = 100_000  # microseconds
BUSY_LOOP = "import os, sys\nwhile os.getppid() == int(sys.argv[1]): sum(range(100_000))"


@dataclass
class Runner:
    """A process that runs pieces of work on request."""

    policy: str
    variables: dict[str, str]
    cores: str = ""
    cgroup: str = ""
    threads: int = 0
    process: subprocess.Popen[str] = field(init=False)

    def __post_init__(self) -> None:
        environment = {name: value for name, value in os.environ.items() if name not in CHOSEN}
        command = [sys.executable, __file__, "--worker", "--cores", self.cores, "--cgroup", self.cgroup]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, env={**environment, **self.variables}, **pipes)

    def ready(self) -> None:
        self.threads = int(self._answer()["threads"])

    def run(self, work: str) -> dict[str, float]:
        assert self.process.stdin is not None
        self.process.stdin.write(work + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, float]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"the process of {self.policy} ended with code {self.process.wait()}; its last words are above")
        return json.loads(line)


def worker(cores: str, cgroup: str) -> None:
    """Loads a model, then runs what stdin names, and prints seconds of wall and processor time."""
    if cores:
        os.sched_setaffinity(0, {int(core) for core in cores.split(",")})
    if cgroup:
        (Path(cgroup) / "cgroup.procs").write_text(str(os.getpid()))
    import spintune  # noqa: F401 - decides how threads wait, before torch is loaded

    pieces, count = _pieces()
    print(json.dumps({"threads": count}), flush=True)
    for line in sys.stdin:
        began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
        pieces[line.strip()]()
        seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF)
        used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        print(json.dumps({"seconds": seconds, "processor": used}), flush=True)


def _pieces() -> tuple[dict[str, Callable[[], object]], int]:
    """Pieces of work of some tenths of a second, each run once, and the number of threads."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from spintune.engine.logprobs import LogProbEngine
    from spintune.engine.query import Query
    from spintune.generation.batch import BatchGenerator
    from spintune.generation.sampling import Sampling
    from spintune.kernels.allocator import reuse_memory

    with contextlib.suppress(ImportError):  # an older version, for comparison
        from spintune.threads import follow_quota

        follow_quota()
    reuse_memory()
    torch.manual_seed(0)
    shape = {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3}
    config = LlamaConfig(
        **shape, vocab_size=16384, num_hidden_layers=6, tie_word_embeddings=True, eos_token_id=None, bos_token_id=None
    )
    engine = LogProbEngine(LlamaForCausalLM(config))
    ids = torch.randint(config.vocab_size, (32, 160)).tolist()
    queries = [Query(tuple(row[:64]), (tuple(row[64:]),)) for row in ids]
    words = Tokenizer(WordLevel({f"w{id}": id for id in range(config.vocab_size)}, unk_token="w0"))
    generator = BatchGenerator(engine, PreTrainedTokenizerFast(tokenizer_object=words), frozenset())
    prompts = [tuple(row[:24]) for row in ids]

    def train() -> None:
        engine(queries[:4]).sum_N.sum().backward()
        engine.model.zero_grad()

    pieces: dict[str, Callable[[], object]] = {
        "train": train,
        "score": lambda: engine.score(queries[:8]),
        "generate": lambda: generator.generate(prompts, Sampling(8, 0.0, 1.0, 0, 0)),
        "chat": lambda: generator.generate(prompts[:1], Sampling(12, 0.0, 1.0, 0, 0)),
    }
    for piece in pieces.values():
        piece()
    return pieces, torch.get_num_threads()


@contextlib.contextmanager
def running(policies: dict[str, dict[str, str]], cores: str = "", cgroup: str = "") -> Iterator[list[Runner]]:
    """A process for each policy, until the block ends."""
    runners = [Runner(name, variables, cores, cgroup) for name, variables in policies.items()]
    try:
        for runner in runners:
            runner.ready()
        yield runners
    finally:
        for runner in runners:
            runner.process.kill()
            runner.process.wait()


@contextlib.contextmanager
def busy(count: int) -> Iterator[list[int]]:
    """Other work: processes that compute without end, until the block ends. Gives their ids."""
    others = [subprocess.Popen([sys.executable, "-S", "-c", BUSY_LOOP, str(os.getpid())]) for _ in range(count)]
    try:
        yield [other.pid for other in others]
    finally:
        for other in others:
            other.kill()
            other.wait()


@contextlib.contextmanager
def quota(cores: float) -> Iterator[str | None]:
    """A control group with a quota, until the block ends; None where none can be made."""
    name = f"spintune-busy-{os.getpid()}"
    for folder in CGROUPS:
        group = folder / name
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            if (group / "cpu.cfs_quota_us").exists():
                (group / "cpu.cfs_quota_us").write_text(str(int(cores * PERIOD)))
            else:
                (group / "cpu.max").write_text(f"{int(cores * PERIOD)} {PERIOD}")
            yield str(group)
            return
        except OSError:
            continue
        finally:
            group.rmdir()
    yield None


Measured = dict[tuple[str, str], list[dict[str, float]]]


def take_turns(
    runners: Sequence[Runner], work: Sequence[str], seconds: float, others: Sequence[int] = ()
) -> tuple[Measured, float]:
    """Rounds of all pieces by all processes, for some seconds and two rounds at least.

    Returns what each took, and the number of cores that work of nobody here kept busy.
    """
    found: Measured = defaultdict(list)
    pids = [*others, *(runner.process.pid for runner in runners)]
    began, before = time.monotonic(), busy_seconds() - sum(map(_processor_time, pids))
    turn = 0
    while turn < 2 or time.monotonic() - began < seconds:
        for piece in work:
            for place in range(len(runners)):
                runner = runners[(place + turn) % len(runners)]
                found[runner.policy, piece].append(runner.run(piece))
        turn += 1
    foreign = busy_seconds() - sum(map(_processor_time, pids)) - before
    return found, max(0.0, foreign) / (time.monotonic() - began)


def _processor_time(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Table:
    """Prints what was measured, beside what each piece of work takes alone."""

    def __init__(self, work: Sequence[str]) -> None:
        self.work, self.alone = work, dict[str, tuple[float, float]]()
        print("| | policy | threads | " + " | ".join(work) + " | foreign cores |")
        print("|---" * (len(work) + 4) + "|")

    def add(self, situation: str, runners: Sequence[Runner], measured: tuple[Measured, float], share: Share) -> None:
        found, foreign = measured
        typical = {
            key: tuple(statistics.median(one[unit] for one in values) for unit in ("seconds", "processor"))
            for key, values in found.items()
        }
        if not self.alone:  # the first rows are those of the work alone
            for work in self.work:
                seconds, used = zip(*(typical[runner.policy, work] for runner in runners), strict=True)
                self.alone[work] = min(seconds), min(used)
        for runner in runners:
            cells = []
            for work in self.work:
                seconds, used = typical[runner.policy, work]
                least = self.alone[work]
                by_share = seconds / least[0] * share(runner.threads)
                cells.append(f"{1000 * seconds:.0f}, {by_share:.2f}, {used / least[1]:.2f}")
            row = [situation, runner.policy, runner.threads, *cells, f"{foreign:.2f}"]
            print(f"| {' | '.join(map(str, row))} |", flush=True)


Share = Callable[[int], float]
"""From a number of threads to the share of the cores that is fair for them."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer situations, and fewer seconds for each")
    parser.add_argument("--seconds", type=float, help="for each situation; 25, or 5 with --quick")
    parser.add_argument("--busy", help="numbers of busy processes; 1,2,4, or 2 with --quick; 0: none of this")
    parser.add_argument("--work", default=",".join(WORK), help="some of %(default)s")
    parser.add_argument(
        "--policy", action="append", default=[], metavar="NAME=VARIABLE:VALUE[;...]", help="in place of the three"
    )
    for name in ("--worker", "--cores", "--cgroup"):
        parser.add_argument(name, nargs="?", const="yes", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options.cores, options.cgroup)
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # other processes and the control group end as well
    policies = POLICIES
    if options.policy:
        named = [text.partition("=") for text in options.policy]
        policies = {name: dict(one.split(":", 1) for one in rest.split(";") if one) for name, _, rest in named}
    seconds = options.seconds or (5 if options.quick else 25)
    counts = [int(count) for count in (options.busy or ("2" if options.quick else "1,2,4")).split(",")]
    print(f"{processor()['name']}, {threads()} cores, load before {os.getloadavg()[0]:.1f}\n")
    table = Table(options.work.split(","))
    beside_others(table, policies, seconds, [count for count in counts if count])
    if counts != [0]:
        on_fewer_cores(table, policies, seconds, options.quick)


def beside_others(table: Table, policies: dict[str, dict[str, str]], seconds: float, counts: Sequence[int]) -> None:
    """Alone, and beside numbers of busy processes."""
    cores = threads()
    with running(policies) as runners:
        table.add("alone", runners, take_turns(runners, table.work, seconds), lambda _: 1.0)
        for count in counts:
            with busy(count) as others:
                measured = take_turns(runners, table.work, seconds, others)
            name = f"beside {count} busy process{'es' * (count > 1)}"
            table.add(name, runners, measured, lambda own, count=count: min(1.0, cores / (own + count)))


def on_fewer_cores(table: Table, policies: dict[str, dict[str, str]], seconds: float, quick: bool) -> None:
    """On one core, and under quotas: threads as spintune chooses them, and one for each core of the machine."""
    cores, first = threads(), next(iter(policies))
    ways = {first: policies[first], "a thread a core": {**policies[first], "OMP_NUM_THREADS": str(cores)}}
    ways["the same, libgomp"] = {"OMP_NUM_THREADS": str(cores), "GOMP_SPINCOUNT": "300000"}
    with running(ways, cores=str(min(os.sched_getaffinity(0)))) as runners:
        table.add("on one core", runners, take_turns(runners, table.work, seconds), lambda _: 1 / cores)
    for limit in (1.0,) if quick or cores < 2 else (1.0, cores - 0.5):
        with quota(limit) as group:
            if group is None:
                print("\nno quota was measured: control groups cannot be made here")
                return
            with running(ways, cgroup=group) as runners:
                # the quota is that of the group, and all of these are in it: one computes at a time
                table.add(
                    f"a quota of {limit}",
                    runners,
                    take_turns(runners, table.work, seconds),
                    lambda _, q=limit: q / cores,
                )


if __name__ == "__main__":
    main()
