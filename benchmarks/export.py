"""Exported networks: their sizes, and their times next to Keras, all in float32.

python benchmarks/export.py --networks=mobilenet,resnet50 --photos=4

LiteRT needs `pip install ai-edge-litert`; without it, it is left out. "fixed" is an export for the
one size of these photos.
"""

import dataclasses
import sys
from pathlib import Path

import inputs
from carvana_tf.cli import Command, main
from carvana_tf.data.images import read_photo
from carvana_tf.errors import UserError
from carvana_tf.flags import Values, option
from carvana_tf.inference.options import FORMATS, LITERT
from carvana_tf.models import networks
from harness import Contender, RoundOptions, in_own_process, measure
from results import Comparison, PlaceOptions, print_table, publish, replace_rows

KERAS, FIXED = "keras", "litert fixed"


@dataclasses.dataclass(frozen=True)
class ExportOptions:
    """What only this benchmark needs."""

    networks: tuple[str, ...] = option(("mobilenet", "resnet50"), "Names of --network.")
    photos: int = option(4, "Photos of a round.", lower=1)
    threads: int = option(0, "Threads of each runtime; 0: as many as there are cores.", lower=0)


def run(values: Values) -> None:
    """Exports each network to every format, and measures the files."""
    place, rounds, options = values[PlaceOptions], values[RoundOptions], values[ExportOptions]
    work = Path(place.work_dir).resolve() / "export"
    chosen, kind = inputs.samples(place.data_dir, work.parent, options.photos)
    photos = inputs.photo_folder(chosen, work / inputs.short(kind, options.photos))
    for name in options.networks:
        stride = networks.find(name).stride
        model = work / f"{name}.keras"
        in_own_process("inputs:make_model", str(model), name)
        exports = {KERAS: (KERAS, model)}
        height, width = read_photo(chosen[0].photo).shape[:2]
        padded = (height + -height % stride, width + -width % stride)
        for title, form, size in (*((f, f, None) for f in FORMATS), (FIXED, LITERT, padded)):
            path = work / (f"{name}_{title}".replace(" ", "_") + FORMATS[form])
            try:
                in_own_process("ours.exports:export", str(model), form, str(path), size)
            except UserError as error:
                print(f"{title} is left out: {error}", file=sys.stderr)
                continue
            exports[title] = form, path
        setting = f"{name}, {options.photos} {kind}, {options.threads or 'all'} threads"
        sizes = [
            {"format": t, "megabytes": round(megabytes(p), 2)} for t, (_, p) in exports.items()
        ]
        print_table(sizes)
        replace_rows(Path(place.out_dir) / "export_sizes.csv", sizes, {"network": name})
        contenders = [
            Contender(
                title,
                "ours.exports:run",
                (form, str(path), str(photos), stride, options.threads),
                options.photos,
            )
            for title, (form, path) in exports.items()
        ]
        comparisons = [Comparison(title, KERAS) for title in exports if title != KERAS]
        publish("export", setting, measure(contenders, rounds), comparisons, Path(place.out_dir))


def megabytes(path: Path) -> float:
    """Of a file, of all files of a folder, or of an OpenVINO network with its weights, in 10^6."""
    if path.is_dir():
        return sum(each.stat().st_size for each in path.rglob("*") if each.is_file()) / 1e6
    parts = [path] if path.suffix != ".xml" else [path, path.with_suffix(".bin")]
    return sum(each.stat().st_size for each in parts) / 1e6


if __name__ == "__main__":
    sys.exit(main(Command(__doc__, (PlaceOptions, RoundOptions, ExportOptions), run)))
