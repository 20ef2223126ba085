"""Files that cannot be read: all of them are found and listed, not the first alone."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from carvana_tf.data.dataset import Sample
from carvana_tf.data.images import UnreadableImage, read_grey, read_photo
from carvana_tf.data.tables import write_table
from carvana_tf.errors import UserError
from carvana_tf.progress import bar
from carvana_tf.threads import ordered_map

NAME = "bad_files.csv"
COLUMNS = ("file", "problem")
_NAMED = 3  # how many a message names


def record(folder: Path, bad: Sequence[tuple[str, str]]) -> None:
    """Lists files and what is wrong with each in `NAME` inside a folder; none if none."""
    path = Path(folder) / NAME
    if bad:
        write_table(path, COLUMNS, sorted(bad))
    else:
        path.unlink(missing_ok=True)


class Reads(Protocol):
    """What is needed of a task here, see `tasks.base.Task`."""

    def read_planes(self, sample: Sample) -> object:
        """Reads all files of a sample."""

    def target_files(self, sample: Sample) -> Sequence[tuple[Path, Callable[[Path], object]]]:
        """The files of a sample's target, each with what reads it."""


def find(samples: Sequence[Sample], threads: int, task: Reads) -> list[tuple[str, str]]:
    """Decodes every photo, target and stacked channel; those that are bad, with the reason.

    Raises:
        UserError: The system failed to read a file, or memory was not enough.
    """

    def work(sample: Sample) -> list[tuple[str, str]]:
        if not _problem(task.read_planes, sample):
            return []
        targets = task.target_files(sample)
        readers: list[tuple[Path, Callable[..., object]]] = [
            (sample.photo, lambda path: read_photo(path, sample.reading)),
            *targets,
            *((path, read_grey) for path in sample.stacked),
        ]
        problems = [(str(path), _problem(read, path)) for path, read in readers]
        alone = [(path, problem) for path, problem in problems if problem]
        # Each by itself can be read: they do not fit one another.
        last = [path for path, _ in targets] or [sample.photo]
        return alone or [(str(last[-1]), _problem(task.read_planes, sample))]

    results = ordered_map(work, samples, threads)
    shown = bar(results, total=len(samples), desc="checking photos", unit="photo")
    return [one for found in shown for one in found]


def refuse(samples: Sequence[Sample], folder: Path, threads: int, before: str, task: Reads) -> None:
    """Refuses samples that cannot be read, and lists them all in a folder.

    Args:
        samples: With targets.
        folder: Where `NAME` is written.
        threads: Threads that decode.
        before: What is not begun then ("the first step").
        task: How samples are read.

    Raises:
        UserError: There are some.
    """
    bad = find(samples, threads, task)
    if bad:
        raise UserError(describe(bad, folder, before))
    record(folder, bad)


def describe(bad: Sequence[tuple[str, str]], folder: Path, before: str) -> str:
    """Lists bad files in a folder, and the message that says so."""
    record(folder, bad)
    first = " ".join(problem for _, problem in bad[:_NAMED])
    return (
        f"{len(bad)} files cannot be read, found before {before}: {first} All are listed in "
        f"'{Path(folder) / NAME}'; replace or remove them."
    )


def _problem(function: Callable, argument: object) -> str:
    try:
        function(argument)
    except UnreadableImage as error:
        return str(error)
    return ""
