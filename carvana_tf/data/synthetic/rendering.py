"""What rendered datasets share: the stamp that says what a folder holds, and the processes."""

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, TypeVar

from carvana_tf.data.names import MASK_SUFFIXES
from carvana_tf.errors import UserError
from carvana_tf.files import read_json, write_json
from carvana_tf.progress import bar

STAMP = "demo_dataset.json"
UNFINISHED = "unfinished"
FOLDERS = ("train", "train_masks", "test", "test_masks", "test_stage2")
"""Of images, of either kind of dataset."""

Job = TypeVar("Job")
Result = TypeVar("Result")


def begin(folder: Path, stamp: dict[str, Any], *, overwrite: bool) -> bool:
    """Makes a folder ready; returns whether there is something to render.

    What an interrupted run of the same dataset has left there is rendered again.

    Args:
        folder: Where the dataset goes.
        stamp: All that decides its bytes.
        overwrite: Remove the images of an earlier dataset.

    Raises:
        UserError: There are some, and `overwrite` is False.
    """
    begun = stamp | {UNFINISHED: True}
    found = read_json(folder / STAMP) if (folder / STAMP).is_file() else None
    if found == stamp and not overwrite:
        return False
    names = [name for name in FOLDERS if (folder / name).is_dir()]
    old = [
        p for name in names for p in (folder / name).iterdir() if p.suffix.lower() in MASK_SUFFIXES
    ]
    if old and not overwrite and found != begun:
        raise UserError(
            f"'{folder}' holds {len(old)} other images already (the first is '{old[0]}'); "
            "choose another --dataset_dir, or replace them with --overwrite."
        )
    write_json(folder / STAMP, begun)
    for path in old:
        path.unlink()
    return True


def finish(folder: Path, stamp: dict[str, Any]) -> None:
    """Says that the folder holds the whole dataset."""
    write_json(folder / STAMP, stamp)


def run(
    render: Callable[[Job], tuple[int, Result]], jobs: Sequence[Job], processes: int, total: int
) -> Iterator[Result]:
    """Renders in processes, under a progress bar.

    Args:
        render: An importable function, which returns how many photos it has made, and a result.
        jobs: What it is called with.
        processes: How many; with 1 this process does it.
        total: Photos of all jobs.

    Yields:
        The results, in the order in which they are done.
    """
    with bar(total=total, desc="rendering", unit="photo") as shown:
        for count, result in _results(render, jobs, processes):
            shown.update(count)
            yield result


def _results(
    render: Callable[[Job], tuple[int, Result]], jobs: Sequence[Job], processes: int
) -> Iterator[tuple[int, Result]]:
    if processes == 1 or len(jobs) < 2:
        yield from map(render, jobs)
        return
    # Fresh processes: a forked one may inherit locks that are held.
    context = multiprocessing.get_context("spawn")
    pool: Executor = ProcessPoolExecutor(min(processes, len(jobs)), mp_context=context)
    try:
        for done in as_completed([pool.submit(render, job) for job in jobs]):
            yield done.result()
    finally:
        pool.shutdown(cancel_futures=True)
