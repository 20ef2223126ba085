"""Photos per second of a fleet of GPUs, what saturates first, and a simulation of the same.

python benchmarks/cost_model.py --timings=predicted/timings.json --photos_dir=input/test

Stage times and sizes of files are those of a prediction: of --timings, with its masks next to it,
or of one that is made here. All else is assumed, by the flags. See docs/scale.md.
"""

import dataclasses
import itertools
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import fleet
import inputs
from carvana_tf.cli import Command, main
from carvana_tf.errors import UserError
from carvana_tf.evaluation import timings
from carvana_tf.flags import Values, option
from carvana_tf.progress import bar
from harness import in_own_process
from results import PlaceOptions, print_table, replace_rows

MANY = 10_000_000
_SIMULATED = 40_000
"""Photos of a simulation; of many GPUs at least `_LEAST` each."""
_LEAST = 40
_SHOWN = (
    *("requests", "gpus", "photos_per_second", "saturates_first", "simulated"),
    *("hours_of_10_million", "saturates_next", "next_photos_per_second"),
)


@dataclasses.dataclass(frozen=True)
class CostOptions:
    """The prediction that was measured, and the fleet."""

    timings: str | None = option(
        None, "timings.json of a prediction, in the folder of its masks; by default one is made."
    )
    photos_dir: str | None = option(None, "The photos of --timings, for the sizes of their files.")
    photos: int = option(16, "Photos of the prediction that is made.", lower=1)
    network_ms: float = option(
        10.0, "Assumed: milliseconds of a GPU for a photo; 0: as in --timings.", lower=0
    )
    gpus: tuple[int, ...] = option((1, 8, 64, 256, 1000), "Numbers of GPUs, a row each.", lower=1)
    gpus_per_machine: int = option(8, "Assumed: GPUs of a machine.", lower=1)
    cores: int = option(64, "Assumed: processor cores of a machine.", lower=1)
    threads: int = option(8, "Assumed: --threads of each process.", lower=1)
    nic_gbit: float = option(25.0, "Assumed: Gbit/s of a machine's network.", lower=0.001)
    storage_gbyte: float = option(
        10.0, "Assumed: GB/s of the storage, read and written together.", lower=0.001
    )
    storage_requests: float = option(50_000.0, "Assumed: requests/s of the storage.", lower=1)
    latency_ms: float = option(5.0, "Assumed: milliseconds from a request to its answer.", lower=0)
    requests: tuple[float, ...] = option(
        (8.0, 3.0),
        "Assumed: requests of a photo (look up, open, close) and its mask (create, write, sync, "
        "close, rename), which --output=rle does not write; a table for each.",
        lower=0.001,
    )
    start_seconds: float = option(60.0, "Assumed: seconds to start a process.", lower=0)


def run(values: Values) -> None:
    """Reads or measures stage times, then computes and simulates each fleet."""
    place, options = values[PlaceOptions], values[CostOptions]
    if options.timings:
        if not options.photos_dir:
            raise UserError("--timings needs --photos_dir, for the sizes of the photos' files.")
        file, photos = Path(options.timings), Path(options.photos_dir)
        what = f"{timings.read(file).get('photos')} photos of --timings"
    else:
        file, photos, kind = _measure(place, options.photos)
        what = f"{options.photos} {kind}, processor time"
    photo = photo_of(file, photos, options.network_ms)
    print(
        f"of a photo: decode {1e3 * photo.decode:.1f} ms, network {1e3 * photo.network:.1f} ms, "
        f"encode {1e3 * photo.encode:.1f} ms, {photo.read_bytes / 1e3:.0f} kB read, "
        f"{photo.written_bytes / 1e3:.0f} kB written"
    )
    assumed = dataclasses.asdict(options)
    for name in ("timings", "photos_dir", "photos", "gpus"):
        del assumed[name]
    of_photo = {
        "decode_ms": round(1e3 * photo.decode, 2),
        "network_ms": round(1e3 * photo.network, 2),
        "encode_ms": round(1e3 * photo.encode, 2),
        "read_kb": round(photo.read_bytes / 1e3, 1),
        "written_kb": round(photo.written_bytes / 1e3, 1),
    }
    pairs = itertools.product(options.requests, options.gpus)
    total = len(options.requests) * len(options.gpus)
    rows = []
    for requests, gpus in bar(pairs, total=total, desc="simulating", unit="fleet"):
        one = dataclasses.replace(photo, operations=requests)
        row = row_of(fleet_of(gpus, options), one, options.start_seconds)
        rows.append({**row, **assumed, **of_photo, "requests": requests})
    print_table([{name: row[name] for name in _SHOWN} for row in rows])
    replace_rows(Path(place.out_dir) / "cost_model.csv", rows, {"what": what})


def photo_of(file: Path, photos: Path, network_ms: float) -> fleet.Photo:
    """What a photo takes, by a prediction's times and files; requests are not known.

    Args:
        file: `timings.json` next to the masks.
        photos: Folder of the photos.
        network_ms: Milliseconds of a device; 0: as measured.

    Raises:
        UserError: These are missing, or times of no prediction.
    """
    found = timings.read(file)
    if not found.get("photos") or "stages" not in found:
        raise UserError(f"'{file}' is no timings.json of a prediction, or of one without photos.")
    seconds = {row["stage"]: row["seconds"] / found["photos"] for row in found["stages"]}
    return fleet.Photo(
        decode=seconds["read"] + seconds["prepare"],
        network=network_ms / 1e3 or seconds["network"],
        encode=seconds["restore"] + seconds["encode"] + seconds["write"],
        read_bytes=_mean_size(photos),
        written_bytes=_mean_size(file.parent, "*.png"),
        operations=0.0,
    )


def fleet_of(gpus: int, options: CostOptions) -> fleet.Fleet:
    """The fleet that the flags describe, with so many GPUs."""
    return fleet.Fleet(
        gpus=gpus,
        gpus_per_machine=options.gpus_per_machine,
        cores=options.cores,
        threads=options.threads,
        nic=options.nic_gbit * 1e9 / 8,
        bandwidth=options.storage_gbyte * 1e9,
        operations=options.storage_requests,
        latency=options.latency_ms / 1e3,
    )


def row_of(machines: fleet.Fleet, photo: fleet.Photo, start_seconds: float) -> dict[str, Any]:
    """A row of the table."""
    each = fleet.capacities(machines, photo)
    (first, rate), (second, further) = sorted(each.items(), key=lambda item: item[1])[:2]
    simulated = fleet.simulate(machines, photo, max(_LEAST, _SIMULATED // machines.gpus))
    return {
        "gpus": machines.gpus,
        "photos_per_second": round(rate, 1),
        "saturates_first": first,
        "simulated": round(simulated, 1),
        "simulated_to_model": round(simulated / rate, 3),
        "hours_of_10_million": round((MANY / rate + start_seconds) / 3600, 2),
        "saturates_next": second,
        "next_photos_per_second": round(further, 1),
    }


def _measure(place: PlaceOptions, count: int) -> tuple[Path, Path, str]:
    """Predicts some photos on the processor; the times' file, the photos, and what these are."""
    work = Path(place.work_dir).resolve() / "cost_model"
    chosen, kind = inputs.samples(place.data_dir, work.parent, count)
    photos = inputs.photo_folder(chosen, work / inputs.short(kind, count))
    model, masks = work / "blobs.keras", work / "masks"
    in_own_process("ours.stages:make_blobs", str(model))
    shutil.rmtree(masks, ignore_errors=True)
    command = [sys.executable, "-m", "ours.stages", f"--weights={model}", "--gpu=", "--threads=1"]
    command += [f"--test_data_dir={photos}", f"--pred_mask_dir={masks}", "--engine=keras"]
    subprocess.run(command, cwd=Path(__file__).parent, check=True, stdout=subprocess.DEVNULL)
    return masks / "timings.json", photos, kind


def _mean_size(folder: Path, pattern: str = "*") -> float:
    """Bytes of a file of a folder.

    Raises:
        UserError: There is none.
    """
    found = [path for path in folder.glob(pattern) if not path.name.startswith(".")]
    sizes = [path.stat().st_size for path in found if path.is_file()]
    if not sizes:
        raise UserError(f"'{folder}' holds no files {pattern}.")
    return statistics.mean(sizes)


if __name__ == "__main__":
    sys.exit(main(Command(__doc__, (PlaceOptions, CostOptions), run)))
