"""The commands that the harnesses disturb, on inputs that take each a few seconds."""

import shutil
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

import numpy as np
import processes
import yaml
from conftest import write_dataset
from faults.folders import contents

from carvana_tf.data.images import write_mask, write_photo, write_probability
from carvana_tf.masks import rle

ROOT = Path(__file__).parents[2]
OUT = "out"
SAVE_SECONDS = 0.5


class Command(NamedTuple):
    """A script that writes into the folder `out`.

    Attributes:
        script: Its file.
        flags: What it is run with, in a folder that `prepare` has filled.
        other: A flag that makes other results in the same folder; "" where a second run waits
            for the first, and then does over what differs.
    """

    script: str
    flags: tuple[str, ...]
    other: str

    def start(self, work: Path, *more: str, log: str = "console.log") -> BaseProcess:
        """Starts it as the leader of a process group."""
        flags = (*self.flags, *more)
        return processes.start_script_apart(work / log, ROOT / self.script, *flags, cwd=work)


TRAINING = ("--network=unet_tiny", "--weights=none", "--size_policy=resize", "--batch_size=2")
TRAINING += ("--input_width=64", "--input_height=64", "--learning_rate=0.001", "--gpu=")
TRAINING += ("--lr_schedule=constant", "--dataset_dir=input", "--fold=0")
COMMANDS = {
    "preparing": Command(
        "tools/prepare_dataset.py",
        (
            *("--dataset_dir=.", "--photo_dirs=photos", "--size=1000x800", "--threads=2"),
            f"--output_dir={OUT}",
        ),
        "--size=90x80",
    ),
    "training": Command(
        "train.py",
        (
            *(*TRAINING, "--epochs=3", "--steps_per_epoch=80", f"--models_dir={OUT}"),
            f"--save_minutes={SAVE_SECONDS / 60}",
        ),
        "--learning_rate=0.002",
    ),
    "prediction": Command(
        "predict_multithreaded.py",
        (
            *("--weights=a.keras", "--test_data_dir=photos", f"--pred_mask_dir={OUT}"),
            *("--engine=keras", "--gpu="),
        ),
        "--weights=b.keras",
    ),
    "labelling": Command(
        "predict_multithreaded.py",
        (
            *("--weights=l.keras", "--test_data_dir=photos", f"--pred_mask_dir={OUT}"),
            *("--engine=keras", "--gpu="),
        ),
        "--pred_tta=hflip",
    ),
    "ensembling": Command(
        "ensemble.py",
        ("--pred_mask_dirs=a,b", f"--pred_mask_dir={OUT}", "--threads=2"),
        "--pred_mask_dirs=b,c",
    ),
    "encoding": Command(
        "generate_encoded_submission.py",
        (
            *("--pred_mask_dir=a", f"--submissions_dir={OUT}", "--submission_name=s.csv.gz"),
            *("--pred_sample_csv=", "--image_extension=.jpg"),
        ),
        "--pred_mask_dir=b",
    ),
    "cutting": Command(
        "tools/cut_out.py",
        (
            *("--photo_dir=scenes", "--pred_mask_dir=m", f"--out_dir={OUT}"),
            "--threads=2",
        ),
        "--background=white",
    ),
    "importing": Command(
        "tools/import_masks.py",
        (
            *(
                "--annotations=annotations/annotations.json",
                "--photo_dir=scenes",
                f"--out_dir={OUT}",
            ),
            "--threads=2",
        ),
        "",
    ),
    "exporting": Command(
        "tools/export_masks.py",
        (
            *("--pred_mask_dir=m", "--photo_dir=scenes", f"--out_dir={OUT}"),
            *("--format=labelme", "--threads=2"),
        ),
        "--label=car",
    ),
    "decoding": Command(
        "tools/decode_submission.py",
        (
            *("--submission=rows.csv", "--img_width=250", "--img_height=150"),
            *(f"--out_dir={OUT}", "--threads=2"),
        ),
        "--order=column-major",
    ),
    "rendering": Command(
        "tools/make_demo_dataset.py",
        (
            *(f"--dataset_dir={OUT}", "--train_cars=4", "--test_cars=1", "--views=4"),
            *("--width=240", "--height=160", "--processes=2"),
        ),
        "--seed=81",
    ),
    "evaluation": Command(
        "evaluate.py",
        (
            *("--dataset_dir=.", "--pred_mask_dir=m", "--train_mask_dir_name=truths"),
            *("--photo_dir=scenes", f"--out_dir={OUT}"),
        ),
        "",
    ),
    "conversion": Command(
        "tools/export_model.py",
        ("--weights=a.keras", "--format=litert", f"--output={OUT}/network.tflite"),
        "",
    ),
    "recipe": Command(
        "train_and_predict.py",
        ("--recipe=tiny.yaml", "--dataset_dir=input", f"--out_dir={OUT}"),
        "",
    ),
}


def prepare(work: Path, photos: int = 400, masks: int = 600, *, everything: bool = True) -> None:
    """Fills a folder with what commands read: all of `COMMANDS`, or those of the short form."""
    dataset = write_dataset(work / "input")
    (dataset / "test").mkdir()
    (work / "photos").mkdir()
    pictures = sorted((dataset / "train").iterdir())
    for number in range(photos):
        shutil.copy(pictures[number % len(pictures)], work / "photos" / f"p{number:05d}.jpg")
    for number in range(2):
        shutil.copy(pictures[number], dataset / "test" / f"new{number}_01.jpg")
    random = np.random.default_rng(0)
    for name in "abc":  # noise, whose PNGs take a while
        for number in range(masks):
            grey = random.integers(0, 256, (150, 250), np.uint8)
            write_probability(work / name / f"p{number:03d}.png", grey)
    training = Command("train.py", (*TRAINING, "--smoke", "--epochs=2", "--keep_every=1"), "")
    finish(training.start(work, "--models_dir=models"), work)
    for name, model in (("a", "last.keras"), ("b", "epoch_001.keras")):
        (found,) = (work / "models").rglob(model)
        shutil.copy(found, work / f"{name}.keras")
    if everything:
        _train_labels(work)
        _draw_scenes(work, masks // 4)
    flags = {"network": "unet_tiny", "smoke": True, "size_policy": "resize", "weights": "none"}
    flags |= {"epochs": 2, "learning_rate": 0.01, "lr_schedule": "constant", "gpu": ""}
    recipe = {"folds": {"n_folds": 2}, "ensemble": {"fit_weights": True}}
    recipe["members"] = [{"name": "a", "flags": flags}]
    (work / "tiny.yaml").write_text(yaml.safe_dump(recipe))


def _draw_scenes(work: Path, count: int) -> None:
    """Photos with probabilities, true masks, annotations and run lengths of the same ellipses."""
    random = np.random.default_rng(1)
    rows, lines = np.ogrid[:150, :250], ["img,rle_mask"]
    for number in range(count):
        stem, middle, size = f"p{number:03d}", random.uniform(60, 90, 2), random.uniform(20, 50)
        inside = (rows[0] - middle[0]) ** 2 + ((rows[1] - middle[1]) / 1.5) ** 2 - size**2
        grey = np.rint(255 / (1 + np.exp(np.clip(inside / size, -30, 30)))).astype(np.uint8)
        noise = random.integers(0, 90, (150, 250, 3), np.uint8)
        write_photo(work / f"scenes/{stem}.jpg", noise + (grey // 2)[..., None])
        write_probability(work / f"m/{stem}.png", grey)
        write_mask(work / f"truths/{stem}_mask.png", inside < 0)
        lines.append(f"{stem}.jpg,{rle.encode_text(inside < 0)}")
    (work / "rows.csv").write_text("\n".join([*lines, ""]))
    flags = ("--pred_mask_dir=m", "--photo_dir=scenes", "--out_dir=annotations")
    finish(Command("tools/export_masks.py", flags, "").start(work), work)


def _train_labels(work: Path) -> None:
    """Makes a network of labels, `l.keras`."""
    photos = sorted(path.stem for path in (work / "input/train").iterdir())
    lines = [f"{photo},{'dark' if i % 2 else 'bright'} car" for i, photo in enumerate(photos)]
    (work / "input/train_labels.csv").write_text("\n".join(["id,labels", *lines, ""]))
    flags = ("--task=labels", "--smoke", "--network=mobilenet", "--alpha=0.25", "--weights=none")
    flags += ("--size_policy=resize", "--gpu=", "--dataset_dir=input", "--fold=none")
    labelling = Command("train.py", (*flags, "--models_dir=models", "--patience=0"), "")
    finish(labelling.start(work), work)
    shutil.copy(work / "models/mobilenet-fold_none-smoke/last.keras", work / "l.keras")


def finish(process: BaseProcess, work: Path, log: str = "console.log") -> str:
    """Waits for the end of a run, which must be a good one; returns what it printed."""
    process.join()
    said = (work / log).read_text(errors="replace")
    assert process.exitcode == 0, said
    return said


def undisturbed(command: Command, work: Path, *more: str) -> tuple[float, dict[str, object]]:
    """Runs a command once, and moves its results away; returns the seconds and the results."""
    start = time.perf_counter()
    finish(command.start(work, *more), work)
    seconds = time.perf_counter() - start
    held = contents(work / OUT)
    remove_results(work)
    return seconds, held


def remove_results(work: Path) -> None:
    """So that a command starts over."""
    shutil.rmtree(work / OUT)
