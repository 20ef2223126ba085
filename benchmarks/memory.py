"""Peak memory of prediction, encoding, ensembling and listings, for few files and for many.

python benchmarks/memory.py
"""

import dataclasses
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import inputs
from carvana_tf.cli import Command, main
from carvana_tf.errors import UserError, unknown_name
from carvana_tf.flags import Values, option
from harness import in_own_process
from results import PlaceOptions, print_table, replace_rows

ROOT = Path(__file__).resolve().parents[1]
MOST = 50.0  # MB that many files may need more than few


@dataclasses.dataclass(frozen=True)
class MemoryOptions:
    """What only this benchmark needs."""

    what: tuple[str, ...] = option(
        ("predict", "encode", "ensemble", "listing"),
        "Which of predict, encode, ensemble and listing to run.",
    )
    predict: tuple[str, ...] = option(("50", "1000"), "Few and many photos to predict.")
    encode: tuple[str, ...] = option(("100", "10000"), "Few and many masks to encode.")
    ensemble: tuple[str, ...] = option(("50", "2000"), "Few and many photos to ensemble.")
    listing: tuple[str, ...] = option(
        ("10000", "10000000"), "Few and many rows of a listing, which is gone through."
    )
    engine: str = option(
        "keras",
        "Value of --engine for the prediction. auto would not do: few photos are not worth a "
        "conversion.",
    )


def run(values: Values) -> None:
    """Runs each script on both numbers of files."""
    place, options = values[PlaceOptions], values[MemoryOptions]
    work = Path(place.work_dir).resolve() / "memory"
    jobs = {"predict": _predict, "encode": _encode, "ensemble": _ensemble, "listing": _listing}
    for name in options.what:
        if name not in jobs:
            raise unknown_name("--what", name, jobs)
        prepare = jobs[name]
        few, many = _counts(name, getattr(options, name))
        commands = [prepare(place, options, work, count) for count in (few, many)]
        peaks = [peak_memory(command) for command in commands]
        what = f"predict, {options.engine}" if name == "predict" else name
        rows = [row(what, (few, many), peaks)]
        print_table(rows)
        replace_rows(Path(place.out_dir) / "memory.csv", rows, {"what": what})


def row(name: str, counts: tuple[int, int], peaks: list[float]) -> dict[str, Any]:
    """What is written of two runs."""
    difference = peaks[1] - peaks[0]
    return {
        "what": name,
        "few": counts[0],
        "many": counts[1],
        "peak_mb_few": round(peaks[0], 1),
        "peak_mb_many": round(peaks[1], 1),
        "difference_mb": round(difference, 1),
        "most_mb": MOST,
        "reached": "yes" if difference <= MOST else "no",
    }


def peak_memory(command: list[str]) -> float:
    """The largest resident set of a command, or of a child of it, in MB (10^6 bytes).

    Raises:
        UserError: It failed.
    """
    with tempfile.TemporaryFile() as heard:
        process = subprocess.Popen(
            [sys.executable, *command], cwd=ROOT, stdout=heard, stderr=subprocess.STDOUT
        )
        # Of this child alone; `resource.RUSAGE_CHILDREN` is the largest of all so far.
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            heard.seek(0)
            tail = heard.read().decode(errors="replace").strip().splitlines()[-1:]
            raise UserError(f"{command[0]} ended with status {process.returncode}: {tail}")
    return usage.ru_maxrss * 1024 / 1e6


def _counts(name: str, given: tuple[str, ...]) -> tuple[int, int]:
    if len(given) != 2 or not all(each.isdecimal() for each in given):
        raise UserError(f"--{name}={','.join(given)} must be two numbers, as 50,1000.")
    return int(given[0]), int(given[1])


def _predict(place: PlaceOptions, options: MemoryOptions, work: Path, count: int) -> list[str]:
    chosen, kind = inputs.samples(place.data_dir, work.parent, 8)
    photos = inputs.photo_folder(chosen, work / f"photos_{inputs.short(kind, count)}", count)
    model = work / "small.keras"
    in_own_process("inputs:make_model", str(model), "simple_unet", None, (160, 240))
    flags_ = [f"--test_data_dir={photos}", f"--weights={model}", "--overwrite"]
    out = f"--pred_mask_dir={work / f'predicted_{count}'}"
    return ["predict_multithreaded.py", *flags_, f"--engine={options.engine}", out]


def _encode(place: PlaceOptions, options: MemoryOptions, work: Path, count: int) -> list[str]:
    masks = _masks(place, work, count, 0)
    out = f"--submissions_dir={work / 'submissions'}"
    return ["generate_encoded_submission.py", f"--pred_mask_dir={masks}", "--pred_sample_csv=", out]


def _ensemble(place: PlaceOptions, options: MemoryOptions, work: Path, count: int) -> list[str]:
    folders = ",".join(str(_masks(place, work, count, seed)) for seed in range(4))
    out = f"--pred_mask_dir={work / f'ensemble_{count}'}"
    return ["ensemble.py", f"--pred_mask_dirs={folders}", out, "--overwrite"]


def _listing(place: PlaceOptions, options: MemoryOptions, work: Path, count: int) -> list[str]:
    path = work / f"listing_{count}.parquet"
    command = ["benchmarks/ours/listing.py", str(path), str(count)]
    if not path.exists():
        peak_memory(command)
    return command


def _masks(place: PlaceOptions, work: Path, count: int, seed: int) -> Path:
    chosen, kind = inputs.samples(place.data_dir, work.parent, 8)
    folder = work / f"masks_{inputs.short(kind, count)}_{seed}"
    return inputs.mask_folder(chosen, folder, count, seed)


if __name__ == "__main__":
    sys.exit(main(Command(__doc__, (PlaceOptions, MemoryOptions), run)))
