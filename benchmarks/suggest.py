"""Whether photos that `suggest_photos` chooses teach more than random ones, on real cars.

CARVANA_DIR=… ENCODER_WEIGHTS=… python benchmarks/suggest.py

For each seed the cars are split at random: 4 that have masks, 8 that are scored, and the others,
whose photos may be annotated. Two networks, trained on 2 cars each, predict these photos; 64 of
them are chosen by their disagreement, and 64 at random. A network is trained on the 4 cars with
the ones, and one with the others, in equal steps. Photos are seen at 160x96 by `mobilenet` with a
frozen ImageNet encoder; Dice is the mean of 4 views of each of the 8 cars at their own size.
"""

import csv
import dataclasses
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

import scripts
from carvana_tf import commands
from carvana_tf.cli import Command, main
from carvana_tf.data.dataset import Sample, find_samples
from carvana_tf.errors import UserError
from carvana_tf.files import make_folder
from carvana_tf.flags import Values, option
from results import PlaceOptions, print_table, replace_rows

ANNOTATED, SCORED = 4, 8  # cars
ADDED, PER_CAR, VIEWS = 64, 8, (1, 5, 9, 13)
_PRETRAINED = "mobilenet_1_0_imagenet_notop.weights.h5"
CHOSEN, RANDOM = "chosen", "random"


@dataclasses.dataclass(frozen=True)
class SuggestOptions:
    """What only this benchmark needs."""

    seeds: int = option(3, "Splits of the cars to measure.", lower=1)
    epochs: int = option(6, "Epochs of 16 steps of each training.", lower=1)


def run(values: Values) -> None:
    """Trains, chooses and compares; a second call goes on where the first was stopped."""
    place, options = values[PlaceOptions], values[SuggestOptions]
    data = place.data_dir or os.environ.get("CARVANA_DIR")
    encoder = os.environ.get("ENCODER_WEIGHTS")
    if not data or not encoder:
        raise UserError("CARVANA_DIR or ENCODER_WEIGHTS is not set; see CONTRIBUTING.md.")
    samples = find_samples(Path(data) / "train", Path(data) / "train_masks")
    for seed in range(options.seeds):
        work = Path(place.work_dir).resolve() / "suggest" / f"seed_{seed}"
        training = (
            *("--network=mobilenet", "--decoder=linknet", f"--seed={seed}"),
            *(f"--weights={Path(encoder) / _PRETRAINED}", "--freeze_encoder_bn"),
            *("--freeze_till_layer=decoder_stage1_conv1", "--batch_size=4"),
            *("--size_policy=resize", "--input_width=160", "--input_height=96"),
            *("--learning_rate=0.004", "--lr_schedule=cosine", "--steps_per_epoch=16"),
            f"--epochs={options.epochs}",
        )
        row = _measure(samples, Path(data), work, seed, training)
        print_table([row])
        setting = f"{options.epochs} epochs, 160x96, seed {seed}"
        replace_rows(Path(place.out_dir) / "suggest.csv", [row], {"setting": setting})


def _measure(
    samples: Sequence[Sample], data: Path, work: Path, seed: int, training: Sequence[str]
) -> dict[str, object]:
    random = np.random.default_rng(seed)
    cars = random.permutation(sorted({sample.group for sample in samples})).tolist()
    own, scored = cars[:ANNOTATED], cars[ANNOTATED : ANNOTATED + SCORED]
    start = [sample for sample in samples if sample.group in own]
    others = [sample for sample in samples if sample.group in cars[ANNOTATED + SCORED :]]
    views = {f"{car}_{view:02d}" for car in scored for view in VIEWS}
    _link(work / "others", [sample.photo for sample in others])
    _link(work / "scored", [sample.photo for sample in samples if sample.stem in views])

    chosen = _choose(start, work, training)
    drawn = random.choice(len(others), ADDED, replace=False)
    added = {
        CHOSEN: [sample for sample in others if sample.photo.name in chosen],
        RANDOM: [others[i] for i in drawn],
    }
    for name, more in added.items():
        _dataset(work / name, [*start, *more])
        _train(work / name, work / "models" / name, "none", training)
        _predict(work / "models" / name, "none", work / "scored", work / "masks" / name)
    row = scripts.compare(
        *([f"--dataset_dir={data}"], work / "masks" / CHOSEN, work / "masks" / RANDOM),
        *(work / "scores", (f"dice_{CHOSEN}", f"dice_{RANDOM}")),
    )
    shared = len({sample.stem for sample in added[CHOSEN]} & {s.stem for s in added[RANDOM]})
    return {**row, "in_both": shared}


def _choose(start: Sequence[Sample], work: Path, training: Sequence[str]) -> set[str]:
    """The names of the photos that the networks of two folds disagree on."""
    _dataset(work / "start", start)
    scripts.run("make_folds.py", f"--dataset_dir={work / 'start'}", "--n_folds=2")
    folders = []
    for fold in ("0", "1"):
        _train(work / "start", work / "models/committee", fold, training)
        folders.append(work / "masks" / f"committee_{fold}")
        _predict(work / "models/committee", fold, work / "others", folders[-1])
    scripts.run(
        *("tools/suggest_photos.py", f"--pred_mask_dirs={','.join(map(str, folders))}"),
        *(f"--dataset_dir={work / 'start'}", f"--test_data_dir={work / 'others'}"),
        *(f"--out_dir={work / 'suggestions'}", f"--count={ADDED}", f"--per_group={PER_CAR}"),
    )
    with (work / "suggestions/suggestions.csv").open(newline="", encoding="utf-8") as stream:
        return {row["photo"] for row in csv.DictReader(stream)}


def _train(dataset: Path, models: Path, fold: str, training: Sequence[str]) -> None:
    arguments = (f"--dataset_dir={dataset}", f"--models_dir={models}", f"--fold={fold}")
    _call("train", *arguments, *training)


def _predict(models: Path, fold: str, photos: Path, masks: Path) -> None:
    _call(
        "predict",
        f"--weights={models / f'mobilenet-fold_{fold}' / 'last.keras'}",
        *(f"--test_data_dir={photos}", f"--pred_mask_dir={masks}", "--engine=keras"),
    )


def _call(name: str, *arguments: str) -> None:
    """Runs a command in this process: to load the libraries takes as long as these trainings."""
    commands.find(name).call(arguments)


def _dataset(folder: Path, samples: Sequence[Sample]) -> None:
    _link(folder / "train", [sample.photo for sample in samples])
    _link(folder / "train_masks", [sample.mask for sample in samples if sample.mask])


def _link(folder: Path, paths: Iterable[Path]) -> None:
    """Links to files in a folder; those that are there from an earlier run go."""
    for path in make_folder(folder).iterdir():
        path.unlink()
    for path in paths:
        (folder / path.name).symlink_to(path.resolve())


if __name__ == "__main__":
    sys.exit(main(Command(__doc__, (PlaceOptions, SuggestOptions), run)))
