"""Scores a folder of probability PNGs against truth masks and writes tables and a report.

python evaluate.py --pred_mask_dir=predicted_masks/fold0 --dataset_dir=input --fold=0
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import carvana_tf
from carvana_tf import cli, flags
from carvana_tf.data.dataset import list_images, list_masks
from carvana_tf.data.folds import find_folds_file, read_folds
from carvana_tf.data.images import read_grey, read_mask, read_photo, resize, write_photo
from carvana_tf.errors import UserError
from carvana_tf.evaluation import pairs, pictures, report, scores
from carvana_tf.evaluation.counts import DEFAULT_THRESHOLD
from carvana_tf.files import make_folder, read_json, write_json, write_text
from carvana_tf.flags import option
from carvana_tf.masks import manifest as manifests
from carvana_tf.options import DatasetOptions

WORST = 10


@dataclasses.dataclass(frozen=True)
class EvaluationOptions:
    """What only this script needs."""

    pred_mask_dir: str | None = option(None, "Folder of the probability PNGs to score.")
    train_mask_dir_name: str = option(
        "train_masks", "Folder of the truth masks, inside --dataset_dir.", alias="train_mask_dir"
    )
    photo_dir: str | None = option(
        None, "Photos for the pictures, in or outside --dataset_dir; 'train' by default."
    )
    fold: int | None = option(
        None, "Score the photos of this fold alone, and require all of them.", lower=0
    )
    partial: bool = option(False, "Score a fold even where photos of it have no prediction.")
    threshold: int = option(
        DEFAULT_THRESHOLD, "A grey value greater than this is object.", lower=0, upper=255
    )
    seed: int = option(80, "Seed of the bootstrap interval.", lower=0)
    out_dir: str | None = option(
        None, "Folder for the products; by default 'evaluation' inside --pred_mask_dir."
    )
    threads: int = option(4, "Threads that read masks.", lower=1)


_DATASET = flags.define(DatasetOptions)
_EVALUATION = flags.define(EvaluationOptions)


def main() -> None:
    """Pairs, counts, scores, and writes the products."""
    dataset, options = _DATASET.read(), _EVALUATION.read()
    if options.pred_mask_dir is None:
        raise UserError("--pred_mask_dir is missing; name the folder of masks to score.")
    folder = Path(options.pred_mask_dir)
    truth_dir = dataset.folder(options.train_mask_dir_name)
    predictions = list_images(folder, (".png",))
    if not predictions:
        raise UserError(f"the folder '{folder}' holds no mask (looked for .png).")
    manifest = manifests.read(folder)
    if manifest is not None:
        pairs.check_manifest(manifest, folder, predictions)
    folds = _read_folds(dataset, options.fold)
    matching = pairs.match(
        predictions,
        list_masks(truth_dir, dataset.naming),
        dataset.naming,
        folds,
        only_fold=options.fold,
        whole_folds=() if options.partial else _whole_folds(options.fold, manifest),
    )
    _tell_unmatched(matching, len(predictions), manifest)

    scored = matching.pairs
    if folds and all(pair.fold is None for pair in scored):
        print("no table per fold: the folds file knows none of these photos.")
    counts = pairs.read_counts(scored, options.threads)
    photos = scores.per_photo(
        [p.stem for p in scored],
        [p.group for p in scored],
        [p.fold for p in scored],
        counts,
        options.threshold,
    )
    curve = scores.threshold_curve(counts)
    tables = {
        "per_photo": photos,
        "per_group": scores.per_group(photos),
        "per_fold": scores.per_fold(photos, options.seed),
        "threshold_curve": curve,
    }
    summary = scores.summarise(photos, curve, options.threshold, options.seed) | {
        "fold": options.fold,
        "predictions": str(folder),
        "truth": str(truth_dir),
        "predictions_without_truth": matching.without_truth,
        "truth_without_prediction": matching.without_prediction,
        "version": carvana_tf.__version__,
    }

    out_dir = make_folder(Path(options.out_dir or folder / "evaluation"))
    for name, table in tables.items():
        target = out_dir / f"{name}.csv"
        # What an earlier run left there would contradict this one.
        target.unlink(missing_ok=True)
        if len(table):
            write_text(target, table.to_csv(index=False, lineterminator="\n"))
    write_json(out_dir / "summary.json", summary)
    photo_dir = dataset.folder(options.photo_dir or "train")
    gallery = _draw(photos, scored, photo_dir, options.threshold, out_dir / "comparison.jpg")
    timings = folder / "timings.json"
    page = report.render(
        title=f"Evaluation of {folder.name}",
        summary=summary,
        photos=photos,
        groups=tables["per_group"],
        folds=tables["per_fold"],
        curve=curve,
        manifest=manifest,
        gallery=gallery,
        timings=read_json(timings) if timings.is_file() else None,
    )
    write_text(out_dir / "report.html", page)
    _print_tables(tables, summary, out_dir)


def _read_folds(dataset: DatasetOptions, fold: int | None) -> dict[str, int]:
    try:
        path = find_folds_file(dataset.folds_source, Path(dataset.dataset_dir))
    except UserError:
        if fold is not None:
            raise
        print(f"no table per fold: there is no folds file '{dataset.folds_source}'.")
        return {}
    table = read_folds(path)
    numbers = sorted(set(table["fold"]))
    if fold is not None and fold not in numbers:
        raise UserError(
            f"--fold={fold} does not exist; '{path}' has {', '.join(map(str, numbers))}."
        )
    return {str(name): int(number) for name, number in zip(table["id"], table["fold"], strict=True)}


def _whole_folds(fold: int | None, manifest: manifests.Manifest | None) -> set[int]:
    """The folds that must be complete: the one asked for, or those the folder is made of."""
    if fold is not None:
        return {fold}
    if manifest is None or not manifest.out_of_fold:
        return set()
    return {m["fold"] for m in manifest.models if isinstance(m.get("fold"), int)}


def _tell_unmatched(
    matching: pairs.Matching, predictions: int, manifest: manifests.Manifest | None
) -> None:
    elsewhere = predictions - len(matching.pairs) - len(matching.without_truth)
    if matching.without_truth:
        print(f"not scored, no truth: {_names(matching.without_truth)}")
    if elsewhere:
        print(f"not scored, of other folds: {elsewhere} predictions")
    if matching.without_prediction:
        print(f"not scored, no prediction: {_names(matching.without_prediction)}")
    if manifest is not None and not manifest.out_of_fold:
        print("the masks are not out of fold: a model may know these photos, and score too well.")


def _names(stems: list[str], most: int = 5) -> str:
    more = ", ..." if len(stems) > most else ""
    return f"{len(stems)} ({', '.join(stems[:most])}{more})"


def _draw(
    photos: pd.DataFrame,
    scored: list[pairs.Pair],
    photo_dir: Path,
    threshold: int,
    target: Path,
) -> list[report.Exhibit]:
    """Writes the comparison of the best, median and worst photo; returns the gallery."""
    target.unlink(missing_ok=True)
    by_stem = {pair.stem: pair for pair in scored}
    ranked = photos.sort_values(["dice", "id"], ignore_index=True)
    shown = {f"worst {i + 1}": i for i in range(min(WORST, len(ranked)))}
    shown |= {"median": len(ranked) // 2, "best": len(ranked) - 1}
    available = list_images(photo_dir) if photo_dir.is_dir() else {}
    if not all(ranked["id"][i] in available for i in shown.values()):
        print(f"no pictures: '{photo_dir}' lacks photos of these masks; see --photo_dir.")
        return []
    gallery: list[report.Exhibit] = []
    rows: dict[str, np.ndarray] = {}
    for rank, i in shown.items():
        stem, dice = str(ranked["id"][i]), float(ranked["dice"][i])
        pair = by_stem[stem]
        truth = read_mask(pair.truth)
        prediction = read_grey(pair.prediction) > threshold
        photo = resize(read_photo(available[stem]), *truth.shape)
        if rank != "best":
            gallery.append(report.exhibit(stem, rank, dice, photo, truth, prediction))
        if rank in ("best", "median", "worst 1"):
            title = f"{rank}: {stem}, Dice {dice:.5f}"
            rows[rank] = pictures.side_by_side(photo, truth, prediction, title=title)
    write_photo(target, np.concatenate([rows[r] for r in ("best", "median", "worst 1")]), 90)
    return gallery


def _print_tables(tables: dict[str, pd.DataFrame], summary: dict[str, Any], out_dir: Path) -> None:
    for name, title in (("per_fold", "folds"), ("per_group", "worst groups")):
        if len(tables[name]):
            rows = tables[name].dropna(axis="columns", how="all").head(WORST)
            print(f"{title}:\n{rows.to_string(index=False, float_format='%.5f')}")
    worst = tables["per_photo"].nsmallest(3, "dice")
    for stem, dice in zip(worst["id"], worst["dice"], strict=True):
        print(f"worst photo {stem}: {dice:.5f}")
    print(
        f"best threshold {summary['best_threshold']}: mean Dice "
        f"{summary['best_threshold_mean_dice']:.5f} ({summary['best_threshold_note']})"
    )
    print(f"report -> {out_dir / 'report.html'}")
    if (out_dir / "comparison.jpg").is_file():
        print(f"comparison -> {out_dir / 'comparison.jpg'}")
    interval = "no interval of one group"
    if summary["interval"]:
        interval = "95 % interval {:.5f}..{:.5f}".format(*summary["interval"])
    print(f"mean Dice {summary['mean_dice']:.5f} ({interval}, {summary['photos']} photos)")


if __name__ == "__main__":
    cli.run(main)
