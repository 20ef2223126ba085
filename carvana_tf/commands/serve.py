"""Serves a page on this machine to try a model: drop photos, see masks and cut-outs.

python tools/serve.py --weights=models/mobilenet-fold_0/best.keras

Only programs on this machine reach the page, and it connects to nothing else. Ctrl-C ends it and
removes what was uploaded.
"""

import dataclasses
from pathlib import Path

from carvana_tf.cli import Command
from carvana_tf.errors import Problems, absent
from carvana_tf.flags import Values, defaults, option
from carvana_tf.inference.options import EngineOptions
from carvana_tf.masks.cutouts.options import CutoutOptions
from carvana_tf.models.options import NetworkOptions
from carvana_tf.options import ImageOptions


@dataclasses.dataclass(frozen=True)
class ServeOptions:
    """The models, and the page."""

    weights: tuple[str, ...] = option(
        (), "Model files (.keras) or weights (.h5), comma-separated; several are averaged."
    )
    port: int = option(7860, "Of the page; 0 takes a free one.", lower=0, upper=65535)
    most_files: int = option(20, "Photos that may be dropped at once.", lower=1)
    most_megabytes: int = option(50, "Size of each of them.", lower=1, upper=4096)
    gpu: str = option("0", "Numbers of the GPUs, as 0,1; empty means the processor.")


_PASSED_ON = (EngineOptions, NetworkOptions, CutoutOptions)


def validate(values: Values, problems: Problems) -> None:
    """Adds models that do not exist."""
    options = values[ServeOptions]
    if not options.weights:
        problems.add("--weights is missing; name one or several .keras or .h5 files.")
    for path in map(Path, options.weights):
        problems.add(f"--weights '{path}' {absent(path)}", not path.is_file())
    values[CutoutOptions].check(problems)


def run(values: Values) -> None:
    """Serves until it is interrupted."""
    import carvana_tf
    from carvana_tf.inference import page

    options = values[ServeOptions]
    with page.uploads() as folder, page.listening(options.port) as listener:
        page.load_gradio()  # before a model is read
        names = {name for group in _PASSED_ON for name in defaults(group)} - {"cutout_format"}
        flags = {name: values.flag(name) for name in sorted(names) if values.is_set(name)}
        model = carvana_tf.load(options.weights, cutout=True, gpu=options.gpu, **flags)
        print(f"http://{page.HOST}:{listener.getsockname()[1]}/ (Ctrl-C ends it)", flush=True)
        page.serve(
            model,
            listener,
            folder,
            most_files=options.most_files,
            most_megabytes=options.most_megabytes,
            suffix=values[CutoutOptions].suffix,
        )
    print("ended; uploaded photos are removed")


COMMAND = Command(
    __doc__,
    (ServeOptions, *_PASSED_ON, ImageOptions),
    run,
    validate,
    loads=("carvana_tf.inference.in_memory",),
)
