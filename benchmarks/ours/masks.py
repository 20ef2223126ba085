"""Submission, ensemble, and files."""

from collections.abc import Callable
from pathlib import Path

from carvana_tf import files
from carvana_tf.data.images import read_grey
from carvana_tf.data.threshold import DEFAULT_THRESHOLD
from carvana_tf.masks import ensembling, postprocess, rle, submission
from carvana_tf.masks.open_folder import open_folder
from carvana_tf.threads import ordered_map
from harness import Rounds

Save = Callable[[Path, bytes], object]


def encode(rounds: Rounds, folder: str, threads: int, work: str) -> None:
    """PNGs to a verified `.csv.gz`."""
    target = Path(work) / "submission.csv.gz"
    rows = submission.rows_of_folder(Path(folder), ".jpg")
    for _ in rounds:
        submission.write(target, rows, threads)


def run_lengths(rounds: Rounds, folder: str, count: int, times: int) -> None:
    """The first masks of a folder, in memory, to the texts of a submission, `times` times."""
    paths = sorted(Path(folder).iterdir())[:count]
    masks = [read_grey(path) > DEFAULT_THRESHOLD for path in paths]
    for _ in rounds:
        for mask in masks * times:
            rle.encode_text(mask)


def ensemble(
    rounds: Rounds, folders: tuple[str, ...], strategy: str, threads: int, out: str
) -> None:
    """PNGs of several folders to one folder of PNGs, as `ensemble.py` does it."""
    plan = ensembling.plan([open_folder(Path(folder)) for folder in folders])
    target = files.make_folder(Path(out))
    weights = [1.0 + 0.1 * i for i in range(len(folders))] if strategy == "weighted mean" else None
    method = "mean" if weights else strategy
    rule = ensembling.Rule(method, ensembling.Weights(weights), postprocess.parse(()))

    for _ in rounds:
        with files.Group() as group:

            def one(stem: str, save: Save = group.write_bytes) -> None:
                ensembling.combine_photo(plan, rule, stem, target, save)

            for _ in ordered_map(one, plan.stems, threads):
                pass


def write(rounds: Rounds, folder: str, how: str, threads: int, out: str) -> None:
    """The PNGs of a folder, in memory, to another folder, synced as `how` says."""
    content = {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}
    target = files.make_folder(Path(out))

    def unsynced(path: Path, data: bytes) -> None:
        with files.atomic_path(path, durable=False) as temporary:
            temporary.write_bytes(data)

    for _ in rounds:
        with files.Group() as group:
            save: Save = {
                "groups": group.write_bytes,
                "each": files.write_bytes,
                "none": unsynced,
            }[how]

            def one(name: str, save: Save = save) -> None:
                save(target / name, content[name])

            for _ in ordered_map(one, list(content), threads):
                pass
