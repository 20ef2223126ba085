"""Commands as tasks of a Ray cluster, each on a GPU, or a machine without one, for itself."""

import contextlib
import dataclasses
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from carvana_tf import cluster, files, parallel
from carvana_tf.child import Console
from carvana_tf.cluster import Driver
from carvana_tf.environment import ONLY_GPU
from carvana_tf.interrupt import Handler


@dataclasses.dataclass(frozen=True)
class _Task:
    """A command as a machine of the cluster gets it.

    Attributes:
        line: Its name and its flags.
        log: File that what it prints is added to.
        gpus: How many GPUs Ray chooses for it.
        driver: Who waits for it.
    """

    line: tuple[str, ...]
    log: Path
    gpus: int
    driver: Driver


class Remote(Handler):
    """A context that runs commands on a cluster; threads call it, as `parallel.Parallel`.

    Attributes:
        at_once: How many commands that take a GPU run at the same time.
    """

    def __init__(self, ray: ModuleType, driver: Driver, gpu: str = "0") -> None:
        """Starts nothing yet.

        Args:
            ray: Connected to a cluster.
            driver: This process.
            gpu: As many GPUs as this --gpu names are for each command that takes any, where the
                cluster has some.

        Raises:
            UserError: No machine of the cluster has so many, or any processor.
        """
        self._ray = ray
        self._driver = driver
        self._with_gpu = cluster.find_share(ray, gpu)
        # Tasks without a GPU leave those of the cluster to the others.
        self._without = dataclasses.replace(self._with_gpu, gpus=0)
        self._interrupted = False
        self.at_once = self._with_gpu.places
        print(f"tasks of {self._with_gpu}, {self.at_once} at once on {cluster.machines(ray)}")

    def __call__(self, line: Sequence[str], log: Path, label: str = "") -> int:
        """Runs a command to its end, again where its machine was lost.

        Args:
            line: The command's name and its flags.
            log: What the command prints goes to its end; all machines share its folder.
            label: Stands before each line on the console; by default the log's name.

        Returns:
            Its exit status; 1 where Ray has none, and the log says why.

        Raises:
            KeyboardInterrupt: This process was interrupted, and the command has ended.
        """
        if self._interrupted:
            raise KeyboardInterrupt
        takes_gpu = line[0] in parallel.TAKES_GPU
        share = self._with_gpu if takes_gpu else self._without
        given = [f"--gpu={share.gpu}"] if takes_gpu else []
        task = _Task((*line, *given), log.resolve(), share.gpus, self._driver)
        with log.open("a+b") as printed:
            console = Console(label or log.stem)
            running = cluster.as_task(self._ray, _run, share).remote(task)
            self._follow(running, console, printed)
            if self._interrupted:
                raise KeyboardInterrupt
            try:
                status, problem = self._ray.get(running)
            except self._ray.exceptions.RayError as error:
                status, problem = 1, cluster.problem_of(self._ray, error)
            console.write(printed.read() + b"\n")
            if problem:
                reason = f"error: {problem}\n".encode()
                printed.write(reason)
                console.write(reason)
        return status

    def _follow(self, running: Any, console: Console, printed: Any) -> None:
        """Shows what a task prints until it has ended."""
        deadline = float("inf")
        ended: Sequence[Any] = ()
        while not ended and time.monotonic() < deadline:
            ended, _ = self._ray.wait([running], timeout=cluster.POLL_SECONDS)
            console.write(printed.read())
            if self._interrupted and deadline == float("inf"):
                deadline = time.monotonic() + cluster.END_SECONDS
                self._ray.cancel(running)

    def handle(self, number, frame) -> None:
        """Has the threads cancel their tasks."""
        self._interrupted = True


@contextlib.contextmanager
def connected(address: str, folder: Path, gpu: str = "0") -> Iterator[Remote]:
    """What runs commands on the cluster that `--ray_address` names.

    Args:
        address: As of `cluster.connected`.
        folder: That the commands fill; tasks refuse machines that do not see it.
        gpu: As of `Remote`.

    Raises:
        UserError: Ray is not installed, or cannot be reached, or has nothing to run on; or
            another process does the same in the folder.
    """
    with (
        cluster.connected(address) as ray,
        cluster.driving(folder) as driver,
        Remote(ray, driver, gpu) as remote,
    ):
        yield remote


@contextlib.contextmanager
def executing(
    folder: Path, gpu: str, ray_address: str = "", held: Sequence[int] = ()
) -> Iterator[tuple[Callable[..., int], int]]:
    """What runs commands, one on each device of this machine or of a cluster, and how many at once.

    Args:
        folder: That the commands fill.
        gpu: Numbers of GPUs of this machine; of a cluster, as of `Remote`.
        ray_address: Of the cluster; empty: this machine does all.
        held: Files that commands on this machine keep open, see `parallel.Parallel`.

    Raises:
        UserError: There are no such GPUs, or the cluster cannot be used.
    """
    if ray_address:
        with connected(ray_address, folder, gpu) as elsewhere:
            yield elsewhere, elsewhere.at_once
    else:
        places = parallel.places(gpu)
        with parallel.Parallel(places, held) as here:
            yield here, len(places)


def _run(task: _Task) -> tuple[int, str]:
    """Runs a command, in a process of Ray's that does nothing else.

    Returns:
        Its exit status, and what is wrong where that is not in its log.
    """
    if problem := task.driver.misfit(socket.gethostname()):
        return 1, problem
    task.driver.settle()
    if task.gpus == 1:  # without it the command would take the processor
        os.environ[ONLY_GPU] = os.environ.get("CUDA_VISIBLE_DEVICES", "0")
    with (
        task.log.open("a", encoding="utf-8", errors="backslashreplace", buffering=1) as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
        # A process that Ray takes for lost may still be at it.
        files.claimed(task.log, wait=True),
    ):
        # These settle the environment, and the driver has done so in its own process.
        from carvana_tf import cli, commands

        try:
            return cli.main(commands.find(task.line[0]), task.line[1:]), ""
        except Exception:
            traceback.print_exc(file=sys.stderr)
            return 1, ""
