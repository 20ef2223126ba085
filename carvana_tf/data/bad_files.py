"""Files that cannot be read: all of them are found and listed, not the first alone."""

from collections.abc import Callable, Sequence
from pathlib import Path

from carvana_tf.data.dataset import Sample
from carvana_tf.data.images import read_grey, read_mask, read_photo
from carvana_tf.data.loader import read_target
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


def find(samples: Sequence[Sample], threads: int) -> list[tuple[str, str]]:
    """Decodes every photo, mask and stacked channel; those that are bad, with the reason."""

    def work(sample: Sample) -> list[tuple[str, str]]:
        if not _problem(read_target, sample):
            return []
        readers: list[tuple[Path, Callable[..., object]]] = [
            (sample.photo, lambda path: read_photo(path, sample.reading))
        ]
        if sample.mask is not None and sample.soft:
            readers.append((sample.mask, read_grey))
        elif sample.mask is not None:
            readers.append((sample.mask, lambda path: read_mask(path, sample.reading)))
        readers += [(path, read_grey) for path in sample.stacked]
        problems = [(str(path), _problem(read, path)) for path, read in readers]
        alone = [(path, problem) for path, problem in problems if problem]
        # Each by itself can be read: they do not fit one another.
        return alone or [(str(sample.mask or sample.photo), _problem(read_target, sample))]

    results = ordered_map(work, samples, threads)
    shown = bar(results, total=len(samples), desc="checking photos", unit="photo")
    return [one for found in shown for one in found]


def refuse(samples: Sequence[Sample], folder: Path, threads: int, before: str) -> None:
    """Refuses samples that cannot be read, and lists them all in a folder.

    Args:
        samples: With masks.
        folder: Where `NAME` is written.
        threads: Threads that decode.
        before: What is not begun then ("the first step").

    Raises:
        UserError: There are some.
    """
    bad = find(samples, threads)
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
    except UserError as error:
        return str(error)
    return ""
