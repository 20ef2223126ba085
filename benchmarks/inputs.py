"""What is measured: real photos and masks where there are any, else rendered ones."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from carvana_tf.data.dataset import Sample, find_samples
from carvana_tf.data.images import read_mask, resize, to_uint8, write_probability
from carvana_tf.data.synthetic.dataset import DemoSettings, make_dataset
from carvana_tf.errors import UserError
from carvana_tf.files import atomic_path, make_folder

VARIABLE = "CARVANA_DIR"
_VIEWS = 8


def samples(data_dir: str | None, work_dir: Path, count: int) -> tuple[list[Sample], str]:
    """Photos with masks, spread evenly over the cars, and a word on where they are from.

    Args:
        data_dir: Folder with `train/` and `train_masks/`, or None for the variable.
        work_dir: Where photos are rendered (1918x1280) when there is neither.
        count: How many.

    Raises:
        UserError: There are fewer.
    """
    folder = data_dir or os.environ.get(VARIABLE)
    kind = "real photos"
    if not folder:
        cars = -(-count // _VIEWS)
        folder, kind = str(work_dir / f"rendered_{cars}"), "rendered photos"
        settings = DemoSettings(cars, 0, _VIEWS, width=1918, height=1280, seed=80)
        make_dataset(Path(folder), settings, os.cpu_count() or 1)
    found = find_samples(Path(folder) / "train", Path(folder) / "train_masks")
    if len(found) < count:
        raise UserError(f"'{folder}' has {len(found)} photos with masks, {count} are asked for.")
    return [found[i * len(found) // count] for i in range(count)], kind


def short(kind: str, count: int) -> str:
    """A folder name for `count` files of what `samples` returned."""
    return f"{kind.split()[0]}_{count}"


def photo_folder(chosen: list[Sample], folder: Path, count: int | None = None) -> Path:
    """A folder of `count` links to the photos, which come again and again if need be."""

    def link(number: int, target: Path) -> None:
        source = chosen[number % len(chosen)].photo.resolve()
        target.with_suffix(source.suffix).symlink_to(source)

    return _filled(folder, count or len(chosen), link)


def mask_folder(chosen: list[Sample], folder: Path, count: int, seed: int = 0) -> Path:
    """A folder of `count` probability PNGs as a network writes them, made of true masks.

    Each is the ground truth at a quarter of the size, enlarged again: soft, slightly wrong edges.
    Beyond the number of photos they come again as hard links.

    Args:
        chosen: The photos whose masks to take.
        folder: Where to.
        count: How many.
        seed: Of the noise: folders of different seeds are different members.
    """
    random = np.random.default_rng(seed)

    def make(number: int, target: Path) -> None:
        if number >= len(chosen):
            os.link(folder / f"{number % len(chosen):05d}.png", target.with_suffix(".png"))
            return
        path = chosen[number].mask
        if path is None:
            raise UserError(f"'{chosen[number].photo}' has no mask.")
        height, width = (mask := read_mask(path)).shape
        small = resize(mask.astype(np.float32), height // 4, width // 4)
        noise = random.normal(0, 0.02, small.shape) * (small > 0) * (small < 1)
        soft = resize(np.clip(small + noise, 0, 1).astype(np.float32), height, width)
        write_probability(target.with_suffix(".png"), to_uint8(soft))

    return _filled(folder, count, make)


def make_model(
    path: str, network: str, weights: str | None = None, size: tuple[int, int] | None = None
) -> None:
    """Writes a model file that takes photos of any size; call it in a process of its own.

    `<path>.npz` next to it holds the weights for programs that have no Keras, see `read_layers`.

    Args:
        path: The `.keras` file.
        network: A name of `--network`.
        weights: A trained `.keras` of it, or None for random weights.
        size: Height and width that photos are resized to; None is their full size.
    """
    from carvana_tf import devices  # noqa: F401  (starts the backend quietly)

    import keras  # isort: skip

    from carvana_tf.models import model_file, networks, registry
    from carvana_tf.models.options import ModelOptions

    keras.utils.set_random_seed(80)
    # In float32 whatever it was trained in: by hand, Keras computes as the file says.
    model = (
        model_file.load(Path(weights), "float32")[0]
        if weights
        else registry.build(ModelOptions(network))
    )
    metadata = {"network": network, "stride": networks.find(network).stride, "size_policy": "pad"}
    if size is not None:
        metadata |= {"size_policy": "resize", "input_height": size[0], "input_width": size[1]}
    model_file.save(model, Path(path), metadata)
    arrays = {
        f"{layer.name}/{i}": array
        for layer in model.layers
        for i, array in enumerate(layer.get_weights())
    }
    with atomic_path(Path(f"{path}.npz")) as temporary:
        np.savez(temporary, **arrays)


def read_layers(path: str) -> dict[str, list[np.ndarray]]:
    """The weights of each layer, from what `make_model` wrote next to the model file `path`."""
    layers: dict[str, list[np.ndarray]] = {}
    with np.load(f"{path}.npz") as arrays:
        for key in arrays.files:
            layers.setdefault(key.rpartition("/")[0], []).append(arrays[key])
    return layers


def random_batch(size: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Photos `uint8[count, size, size, 3]` and masks `float32[count, size, size, 1]`."""
    random = np.random.default_rng(80)
    photos = random.integers(0, 256, (count, size, size, 3), np.uint8)
    masks = np.zeros((count, size, size, 1), np.float32)
    masks[:, size // 4 : -size // 4, size // 4 : -size // 4] = 1
    return photos, masks


def random_labels(photos: int, classes: int, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels of photos, 1 to `most` of each, and logits, both `float32[photos, classes]`."""
    random = np.random.default_rng(81)
    truth = np.zeros((photos, classes), np.float32)
    for row in truth:
        row[random.choice(classes, random.integers(1, most + 1), replace=False)] = 1
    return truth, random.normal(-4, 2, truth.shape).astype(np.float32)


def _filled(folder: Path, count: int, make: Callable[[int, Path], None]) -> Path:
    """Makes the files 00000, 00001, … of a folder unless it has that many already."""
    make_folder(folder)
    present = {path.stem for path in folder.iterdir() if not path.name.startswith(".")}
    for number in range(count):
        if f"{number:05d}" not in present:
            make(number, folder / f"{number:05d}")
    if len(present) > count:
        raise UserError(f"'{folder}' holds {len(present)} files, not {count}; remove it.")
    return folder
