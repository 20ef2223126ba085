"""The shards of a command as tasks of a Ray cluster, which places them and repeats lost ones.

This process starts them and waits. A task is the same command with `--shard`, in a process of
Ray's on any machine, so provenance and resuming are those of shards; see `carvana_tf.shards`.
Whole commands as tasks are in `carvana_tf.remote`.
"""

import contextlib
import dataclasses
import io
import logging
import os
import re
import signal
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from carvana_tf import __version__, files, shards
from carvana_tf.data import bad_files
from carvana_tf.data.tables import read_table
from carvana_tf.errors import UserError
from carvana_tf.failures import installed
from carvana_tf.interrupt import Interrupt
from carvana_tf.progress import bar, report
from carvana_tf.shards import Shard, ShardOptions

LOCAL, AUTO = "local", "auto"

MARK = "driver.json"
"""While this process waits: what tasks must see in their file system."""
RETRIES = 5
"""How often a task is repeated whose machine or process was lost."""
_OBJECTS = 100 * 2**20
"""Bytes of Ray's store of objects: tasks return a few lines."""
_CONNECT_SECONDS = 5.0
POLL_SECONDS = 0.5
_LOCK_SECONDS = 60.0
"""How long the lock of a lost machine may outlive it, as on NFS."""
END_SECONDS = 60.0
"""How long interrupted tasks may take to finish what they are at."""
_BAR = re.compile(r"\d%\|.*\[.*\]$")


@dataclasses.dataclass(frozen=True)
class Work:
    """A command whose shards are distributed.

    Attributes:
        command: Its name.
        arguments: Its command line.
        folder: That all shards fill.
        product: What it makes of a photo ("mask").
        threads: Processors that a shard asks for where no GPU does its work.
        gpu: Value of --gpu; empty where the command has none.
        without: Flags of the whole that no shard has, with values that mean so.
    """

    command: str
    arguments: Sequence[str]
    folder: Path
    product: str
    threads: int
    gpu: str = ""
    without: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Share:
    """What a task asks for: processors and GPUs, and how many such tasks run at once."""

    cpus: int
    gpus: int
    places: int

    def __str__(self) -> str:
        return f"{self.gpus} GPU" if self.gpus else f"{self.cpus} CPU"

    @property
    def gpu(self) -> str:
        """The task's --gpu: Ray shows it the GPUs that it has chosen for it, numbered from 0."""
        return ",".join(map(str, range(self.gpus)))


@dataclasses.dataclass(frozen=True)
class Driver:
    """The process that starts tasks, as their machines get to know it.

    Attributes:
        started_in: The folder that names of files start from.
        mark: File that it has written.
        token: What is in it.
        version: Of its toolkit.
        backend: Of its Keras.
    """

    started_in: str
    mark: Path
    token: str
    version: str = __version__
    backend: str | None = dataclasses.field(default_factory=lambda: os.environ.get("KERAS_BACKEND"))

    def misfit(self, node: str) -> str:
        """Why its tasks cannot be done on this machine; "" where they can.

        This process works in the driver's folder from here on.
        """
        if self.version != __version__:
            return (
                f"'{node}' has carvana_tf {__version__}, and the command is of {self.version}; "
                "install the same on all machines."
            )
        try:
            os.chdir(self.started_in)
            token = files.read_json(self.mark)
        except (OSError, UserError):
            token = None
        if token == self.token:
            return ""
        return (
            f"'{node}' does not see '{self.mark}': --ray_address needs folders that all machines "
            "share, by the same path; name those."
        )

    def settle(self) -> None:
        """Prepares a process of Ray's for a command; call it before Keras is imported."""
        # Ray cancels by it; where its cluster was started in the background, it is ignored.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if self.backend:
            os.environ["KERAS_BACKEND"] = self.backend


@dataclasses.dataclass(frozen=True)
class _Task:
    """A shard as a machine of the cluster gets it.

    Attributes:
        command: Name of the command.
        arguments: Its flags.
        shard: Which one they name.
        driver: Who waits for it.
    """

    command: str
    arguments: tuple[str, ...]
    shard: Shard
    driver: Driver


@dataclasses.dataclass(frozen=True)
class _Ended:
    """A shard's end on its machine.

    Attributes:
        status: Exit status of the command.
        errors: Lines of its standard error, without progress.
        last: Last line of its standard output.
        node: Name of the machine.
    """

    status: int
    errors: tuple[str, ...]
    last: str
    node: str


def run(work: Work, options: ShardOptions) -> int:
    """Does all shards on the cluster that `--ray_address` names; returns how many those are.

    Shards that fail do not stop the others. The bad photos of all are listed in the folder, as
    one process lists them.

    Raises:
        UserError: Ray is not installed, or cannot be reached; or shards have failed, or photos
            cannot be read, and all other work is done.
        KeyboardInterrupt: There was one, and the tasks have ended.
    """
    with connected(options.ray_address or "") as ray:
        share = find_share(ray, work.gpu, work.threads)
        count = options.num_shards or max(1, min(share.places, shards.MOST))
        print(f"{count} shards of {share} each, {share.places} at once on {machines(ray)}")
        with driving(work.folder / shards.FOLDER) as driver:
            failed = _do_all(ray, work, share, count, driver)
    if failed:
        number, why = min(failed.items())
        raise UserError(
            f"{len(failed)} of {count} shards failed, the first is {number}: {why.rstrip('.')}; "
            "the same command goes on with these."
        )
    _gather_bad(work, count)
    return count


def _do_all(
    ray: ModuleType, work: Work, share: Share, count: int, driver: Driver
) -> dict[int, str]:
    """Runs all tasks to their ends; what is wrong with those that failed, by shard."""
    task = as_task(ray, _do_shard, share)
    without = ["--ray_address=", *work.without]
    if _gpus(work.gpu):
        without.append(f"--gpu={share.gpu}")
    failed: dict[int, str] = {}
    seen: set[str] = set()
    finished, deadline = 0, float("inf")
    with Interrupt() as interrupt, bar(total=count, desc=work.command, unit="shard") as progress:
        running = {
            task.remote(
                _Task(
                    work.command,
                    (*work.arguments, *without, f"--num_shards={count}", f"--shard={number}"),
                    Shard(number, count),
                    driver,
                )
            ): number
            for number in range(count)
        }
        while running and time.monotonic() < deadline:
            ended, _ = ray.wait(list(running), timeout=POLL_SECONDS)
            for each in ended:
                number = running.pop(each)
                one = _ended(ray, each)
                for line in one.errors:
                    if line not in seen and not line.startswith("error: "):
                        seen.add(line)
                        report(line)
                problem = _problem(work, Shard(number, count), one)
                if problem:
                    failed[number] = problem
                else:
                    finished += 1
                    report(f"shard {number} on {one.node}: {one.last}")
                progress.update()
            if interrupt.requested and deadline == float("inf"):
                deadline = time.monotonic() + END_SECONDS
                for each in running:
                    ray.cancel(each)
    if interrupt.requested:
        report(f"{finished} of {count} shards have finished; the same command goes on from here.")
        raise KeyboardInterrupt
    return failed


def as_task(ray: ModuleType, function: Callable, share: Share) -> Any:
    """A function as Ray runs it elsewhere: by `.remote(…)`, again where its process was lost."""
    return ray.remote(
        num_cpus=share.cpus,
        num_gpus=share.gpus,
        max_calls=1,  # a process of its own, whose memory and backend end with it
        max_retries=RETRIES,
        scheduling_strategy="SPREAD",
    )(function)


def problem_of(ray: ModuleType, error: Exception) -> str:
    """What became of a task that returned nothing, in a line."""
    text = str(error) or type(error).__name__
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    # Of an exception in a task the last line says what it is, of Ray's own the first.
    return lines[-1 if isinstance(error, ray.exceptions.RayTaskError) else 0]


def _ended(ray: ModuleType, task: Any) -> _Ended:
    """What a task returned, or what became of it."""
    try:
        return ray.get(task)
    except ray.exceptions.RayError as error:
        return _Ended(1, (f"error: {problem_of(ray, error)}",), "", "")


def _problem(work: Work, shard: Shard, ended: _Ended) -> str:
    """Why a shard failed; "" where it did not, be it that photos were bad."""
    if not ended.status or _unreadable(work.folder, shard):
        return ""
    errors = [line[7:] for line in ended.errors if line.startswith("error: ")]
    return errors[-1] if errors else f"it ended with status {ended.status}"


def _unreadable(folder: Path, shard: Shard) -> int:
    """How many photos a shard that has finished could not read."""
    record = shard.folder(folder) / shards.RECORD
    return files.read_json(record).get("unreadable", 0) if record.is_file() else 0


def _gather_bad(work: Work, count: int) -> None:
    """Lists in the folder what the shards have listed.

    Raises:
        UserError: That is something.
    """
    each = [Shard(number, count) for number in range(count)]
    lists = [one.folder(work.folder) / bad_files.NAME for one in each]
    bad: list[tuple[str, str]] = []
    for path in filter(Path.is_file, lists):
        _, rows = read_table(path)
        bad += [(row[0], row[1]) for _, row in rows]
    bad_files.record(work.folder, bad)
    if bad:
        raise UserError(
            f"{len(bad)} photos have no {work.product}, see above and "
            f"'{work.folder / bad_files.NAME}'; replace or remove them, and run the same command "
            "again."
        )


def _do_shard(task: _Task) -> _Ended:
    """Does a shard, in a process of Ray's that does nothing else."""
    node = socket.gethostname()
    if problem := task.driver.misfit(node):
        return _Ended(1, (f"error: {problem}",), "", node)
    task.driver.settle()
    _wait_for_lock(task.shard.folder(task.driver.mark.parents[1]))
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        # These settle the environment, and the driver has done so in its own process.
        from carvana_tf import cli, commands

        status = cli.main(commands.find(task.command), task.arguments)
    # Bars and what clears them return to the start of their line.
    lines = [line.rpartition("\r")[2].rstrip() for line in errors.getvalue().split("\n")]
    said = tuple(line for line in lines if line and not _BAR.search(line))
    return _Ended(status, said, output.getvalue().strip().rpartition("\n")[2], node)


def _wait_for_lock(folder: Path) -> None:
    """Waits a while for the lock of a process that is lost with its machine."""
    deadline = time.monotonic() + _LOCK_SECONDS
    while time.monotonic() < deadline:
        try:
            with files.held(folder):
                return
        except UserError:
            time.sleep(POLL_SECONDS)


@contextlib.contextmanager
def driving(folder: Path) -> Iterator[Driver]:
    """This process as the driver of tasks that work in a folder; it is the only one inside.

    Raises:
        UserError: Another one is.
    """
    mark = Path(folder).resolve() / MARK
    with files.claimed(mark):
        token = uuid.uuid4().hex
        files.write_json(mark, token)
        try:
            yield Driver(os.getcwd(), mark, token)
        finally:
            mark.unlink(missing_ok=True)


@contextlib.contextmanager
def connected(address: str) -> Iterator[ModuleType]:
    """Ray, connected to a cluster, or to one that it starts on this machine and ends again.

    Raises:
        UserError: It is not installed, or there is no cluster.
    """
    # Before the import, as Ray reads them there: it sends no reports, and --gpu alone chooses GPUs.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    otherwise = ", or leave the flag out (docs/scale.md has other ways)."
    ray = installed("ray", f"--ray_address={address}", "ray", otherwise)
    _check_address(address)
    size = {"object_store_memory": _OBJECTS, "include_dashboard": False} if address == LOCAL else {}
    try:
        ray.init(address, logging_level=logging.ERROR, log_to_driver=False, **size)
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
        raise _unreachable(address, str(error)) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _check_address(address: str) -> None:
    """Refuses an address where nothing answers; Ray itself tries for minutes.

    Raises:
        UserError: It is one.
    """
    if address in (LOCAL, AUTO):
        return
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdecimal():
        raise UserError(
            f"--ray_address='{address}' is no address; give {LOCAL}, {AUTO}, or that of the "
            "cluster's head, as 10.0.0.1:6379."
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise _unreachable(address, str(error)) from error


def _unreachable(address: str, why: str) -> UserError:
    return UserError(
        f"--ray_address={address} cannot be reached ({why.strip().rstrip('.')}); start a cluster "
        f"with `ray start --head`, join this machine to it, or give {LOCAL} for this one alone."
    )


def find_share(ray: ModuleType, gpu: str, threads: int | None = None) -> Share:
    """What each task asks for, so that some machine can give it.

    Args:
        ray: Connected to a cluster.
        gpu: As many GPUs as this --gpu names, where the cluster has any.
        threads: Processors where not; by default as many as the smallest machine has.

    Raises:
        UserError: None can.
    """
    each = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus, gpus = ([int(one.get(kind, 0)) for one in each] for kind in ("CPU", "GPU"))
    wanted = _gpus(gpu)
    if wanted and any(gpus):
        if wanted > max(gpus):
            raise UserError(
                f"--gpu={gpu} asks for {wanted} GPUs, and no machine of the cluster has more "
                f"than {max(gpus)}; name as many as one shard shall have, as --gpu=0."
            )
        return Share(1, wanted, sum(count // wanted for count in gpus))
    if not any(cpus):
        raise UserError(
            "no machine of the cluster offers a processor; start them by `ray start` with "
            "--num-cpus."
        )
    cpu = min(threads, max(cpus)) if threads else min(filter(None, cpus))
    return Share(cpu, 0, sum(count // cpu for count in cpus))


def _gpus(gpu: str) -> int:
    """How many GPUs `--gpu` names; 0 where it is no list of numbers, which each shard refuses."""
    parts = [part.strip() for part in gpu.split(",") if part.strip()]
    return len(set(parts)) if all(part.isdecimal() for part in parts) else 0


def machines(ray: ModuleType) -> str:
    """How many machines the cluster has, for a message."""
    count = sum(node["Alive"] for node in ray.nodes())
    return f"{count} machine{'s' * (count > 1)}"
