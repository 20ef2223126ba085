"""Pages of an evaluation of a few generated photos, for the tests of pages."""

from pathlib import Path

import numpy as np
import pandas as pd

from carvana_tf.data.images import AS_DECLARED, write_mask, write_photo, write_probability
from carvana_tf.evaluation import evaluation, learning, pairs
from carvana_tf.evaluation.gallery import Drawing
from carvana_tf.evaluation.measure import MeasureSettings
from carvana_tf.masks.manifest import ENCODING, Manifest
from carvana_tf.masks.open_folder import MaskFolder
from carvana_tf.tasks.labels import evaluator

HOSTILE = "</script><img src=x onerror=alert(1)>"
NETWORK = "<b>net</b>"


def write_pages(
    root: Path, count: int = 30, *, folds: bool = True, other: bool = True, gallery: int = 300
) -> Path:
    """Photos, truth and predictions, scored; returns the folder of the pages.

    Args:
        root: Where to.
        count: Photos, two to a group.
        folds: Whether they have folds and views.
        other: Whether the masks are compared with others.
        gallery: As of `Pages`.
    """
    random = np.random.default_rng(0)
    found: dict[str, list[pairs.Pair]] = {"here": [], "there": []}
    for i in range(count):
        stem = f"c{i // 2:02d}_{i % 2}"
        truth = np.zeros((40, 60), bool)
        truth[8:30, 10:45] = True
        write_mask(root / "truth" / f"{stem}.png", truth)
        photo = random.integers(0, 255, (40, 60, 3)).astype(np.uint8)
        write_photo(root / "photos" / f"{stem}.jpg", photo)
        for name, share in (("here", 0.002), ("there", 0.004)):
            grey = np.where(truth, 220, 30).astype(np.uint8)
            wrong = random.random(grey.shape) < share * (1 + i % 7)
            grey[wrong] = random.integers(0, 256, int(wrong.sum()))
            path = root / name / f"{stem}.png"
            write_probability(path, grey)
            group = HOSTILE if i < 2 else f"group {i // 2}"
            place = (group, i % 3, path) if folds else (group, None, path)
            view = str(i % 2) if folds else None
            found[name].append(pairs.Pair(stem, *place, root / "truth" / f"{stem}.png", view))
    model = {"file": NETWORK, "digest": "ab" * 32, "network": "unet", "fold": 0}
    made = Manifest(
        (model,), False, "hflip", "keras", "float32", count, "", ENCODING, "1"
    )  # fmt: skip
    folders = {
        name: MaskFolder(root / name, {pair.stem: pair.prediction for pair in each}, made)
        for name, each in found.items()
    }
    matching = pairs.Matching(found["here"], ["x"], [])
    scored = evaluation.evaluate(
        *(folders["here"], matching, MeasureSettings(), root / "truth", None, [], 80, 2)
    )
    rival = evaluation.compare_with(scored, folders["there"], 127, 80, 2) if other else None
    rows = [{"epoch": e, "loss": 1 / e, "val_dice": 1 - 0.1 / e} for e in (1, 2, 3)]
    runs = [learning.Curve(f"run <{fold}>", rows) for fold in range(3)]
    out = root / "pages"
    out.mkdir()
    shown = evaluation.Pages(root / "photos", runs, gallery, Drawing(threads=2))
    evaluation.write(scored, rival, shown, out)
    if other:
        write_label_pages(shown, [pair.stem for pair in found["here"]], out / "labels")
    return out


def write_label_pages(pages: evaluation.Pages, stems: list[str], out: Path) -> None:
    """The same photos with labels."""
    photos = pd.DataFrame(
        {
            "id": [f"{stem}.jpg" for stem in stems],
            "group": [HOSTILE if i < 2 else f"group {i // 2}" for i in range(len(stems))],
            "fold": [i % 3 for i in range(len(stems))],
            "f2": np.linspace(0, 1, len(stems)),
            "labels": [f"{NETWORK} cat" if i % 2 else "dog" for i in range(len(stems))],
            "answered": "dog",
        }
    )
    tables = {
        "per_photo": photos,
        "per_class": pd.DataFrame(
            [("dog", 15, 30, 15), (NETWORK, 15, 0, 0)],
            columns=["label", "photos", "answered", "right"],
        ),
        "threshold_curve": pd.DataFrame({"threshold": [0.0, 0.5, 0.9], "mean_f2": [0.2, 0.6, 0.4]}),
    }
    summary = {
        "photos": len(photos),
        "mean_f2": 0.5,
        "interval": (0.4, 0.6),
        "gap": 0.3,
        "threshold": 0.25,
        "min_labels": 1,
        "max_labels": 5,
        "best_threshold": 0.5,
        "best_threshold_mean_f2": 0.6,
        "crossfit_mean_f2": 0.55,
        "most_frequent": {"mean_f2": 0.4, "labels": ["dog"]},
        "out_of_fold": False,
        "labels_never_predicted": [NETWORK],
        "predictions": "here",
        "version": "1",
        "predictions_without_truth": ["x"],
        "truth_without_prediction": [],
    }
    out.mkdir()
    evaluator.Evaluation(tables, summary).write(out, pages, AS_DECLARED)
