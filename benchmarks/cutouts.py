"""Opacity, colours and shadows of cut-outs against rendered cars of known opacity.

python benchmarks/cutouts.py --cars=8

Cars are rendered alone, so opacity and colours are known, and laid over a studio, a street, leaves
and green, with the blur of a lens, noise and JPEG compression. Masks are the true opacity at
480x320, blurred, moved by a smooth random field (no network is needed), and enlarged, as those of
networks are. Errors are of the pixels within 10 of the true edge, but the sum of absolute
differences (SAD). Milliseconds are those of one thread's processor, per megapixel of the photo.
With pymatting installed its colours are measured, too.
"""

import dataclasses
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from carvana_tf.cli import Command, main
from carvana_tf.data.synthetic import bodies, render, scenes, studio
from carvana_tf.data.synthetic.wheels import place_wheels
from carvana_tf.flags import Values, option
from carvana_tf.masks.cutouts import matting
from carvana_tf.masks.cutouts.shadow import shadow
from peers import cutouts as peers
from results import PlaceOptions, print_table, replace_rows

WIDTH, HEIGHT = 1920, 1280
NETWORK = 480, 320
OFFSETS = {"exact": 0.0, "off by 1.1 pixels": 0.35, "off by 2.2 pixels": 0.7}
"""Standard deviations of what masks are moved by along each axis, in their own pixels.

The names have the mean distance across the edge in pixels of the photo.
"""
BEFORE = "probability as opacity (before)"

Method = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class CutoutBenchmarkOptions:
    """What only this benchmark needs."""

    cars: int = option(8, "Rendered cars, each before two of four backgrounds.", lower=1)


@dataclasses.dataclass(frozen=True)
class _Scene:
    """A car and what it was laid over.

    Attributes:
        alpha: `float32[H, W]`, its true opacity.
        colours: `float32[H, W, 3]` in 0..255, its own.
        photos: By background.
        dark: `float32[H, W]`, the true opacity of its shadow, of those that have one.
    """

    alpha: np.ndarray
    colours: np.ndarray
    photos: dict[str, np.ndarray]
    dark: np.ndarray


def run(values: Values) -> None:
    """Measures all and replaces the rows of the two tables."""
    place, cars = Path(values[PlaceOptions].out_dir), values[CutoutBenchmarkOptions].cars
    found: dict[tuple, list[dict[str, float]]] = defaultdict(list)
    shadows: dict[str, list[dict[str, float]]] = defaultdict(list)
    for number in range(cars):
        scene = _render(number)
        chosen = list(scene.photos)[number % 2 :: 2]
        for key, row in _edges(scene, chosen, number):
            found[key].append(row)
        for name in {"studio", "street"} & {*chosen}:
            shadows[name].append(_shadow(scene, scene.photos[name]))
        print(f"{number + 1} of {cars} cars", file=sys.stderr, flush=True)
    setting = f"{cars} rendered cars of {WIDTH}x{HEIGHT}, masks of {NETWORK[0]}x{NETWORK[1]}"
    tables = {
        "cutouts.csv": [
            {"masks": masks, "opacity": opacity, "colours": colours, **_mean(rows)}
            for (masks, opacity, colours), rows in found.items()
        ],
        "cutout_shadows.csv": [
            {"ground": name, **_mean(rows)} for name, rows in sorted(shadows.items())
        ],
    }
    for name, rows in tables.items():
        print(f"\n{name}")
        print_table(rows)
        replace_rows(place / name, rows, {"setting": setting})


def _mean(rows: list[dict[str, float]]) -> dict[str, Any]:
    means = {name: np.mean([row[name] for row in rows]) for name in rows[0]}
    return {"cutouts": len(rows), **{n: round(float(mean), 4) for n, mean in means.items()}}


def _edges(
    scene: _Scene, chosen: list[str], number: int
) -> Iterator[tuple[tuple, dict[str, float]]]:
    """Of each way to make a cut-out its masks, opacity and colours, and its errors."""
    estimate = peers.multi_level()
    colours: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
        "of the photo": lambda photo, _: photo,
        "blur fusion (ours)": _blur_fusion,
        "blur fusion, full size": peers.full_size_blur_fusion,
    }
    if estimate is not None:
        colours["multi-level (pymatting)"] = estimate
    for name in chosen:
        photo = scene.photos[name]
        for kind, make in colours.items():
            made, spent = _timed(make, photo, scene.alpha)
            yield ("none", "true", kind), _errors(scene, scene.alpha, made, scene.alpha, spent)
    for masks, offset in OFFSETS.items():
        grey = _mask(scene.alpha, np.random.default_rng(number), offset)
        opacities: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
            BEFORE: lambda _, grey: grey / np.float32(255),
            "guided filter alone": peers.guided_filter,
        }
        for name in chosen:
            photo = scene.photos[name]
            for kind, opacity in opacities.items():
                alpha, spent = _timed(opacity, photo, grey)
                yield (masks, kind, "of the photo"), _errors(scene, alpha, photo, grey / 255, spent)
            for kind in ("mask", "photo"):
                (alpha, own), spent = _timed(_cut, photo, grey, kind)
                whole = (masks, f"--edges={kind}", "blur fusion (ours)")
                yield whole, _errors(scene, alpha, own, grey / 255, spent)


def _cut(photo: np.ndarray, grey: np.ndarray, edges: str) -> tuple[np.ndarray, np.ndarray]:
    alpha, colours = np.zeros(grey.shape, np.float32), photo.copy()
    found = matting.matte(photo, grey, follow_photo=edges == "photo")
    if found is not None:
        alpha[found.area], colours[found.area] = found.alpha, found.colours
    return alpha, colours


def _blur_fusion(photo: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    small = cv2.resize(photo, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    return matting.unmixed(photo, small.astype(np.float32) / np.float32(255), alpha)


def _timed(function: Callable, *arguments: Any) -> tuple[Any, float]:
    start = time.thread_time()
    result = function(*arguments)
    return result, 1e9 * (time.thread_time() - start) / arguments[0][..., 0].size


def _errors(
    scene: _Scene, alpha: np.ndarray, colours: np.ndarray, mask: np.ndarray, spent: float
) -> dict[str, float]:
    mixed = ((scene.alpha > 0) & (scene.alpha < 1)).astype(np.uint8)
    band = cv2.dilate(mixed, np.ones((3, 3), np.uint8), iterations=10) > 0
    inside, truth = mask > 0.5, scene.alpha > 0.5
    moved = alpha - scene.alpha
    share, own = alpha[band][:, None], scene.alpha[band][:, None]
    difference = share * colours[band] - own * scene.colours[band]
    whites = difference - 255 * (share - own)
    return {
        "dice_of_the_mask": 2 * (inside & truth).sum() / (inside.sum() + truth.sum()),
        "alpha_sad_thousands": float(np.abs(moved).sum() / 1000),
        "alpha_mse_thousandths": 1000 * float((moved[band] ** 2).mean()),
        "rmse_on_white_of_255": float(np.sqrt((whites**2).mean())),
        "rmse_on_black_of_255": float(np.sqrt((difference**2).mean())),
        "ms_per_megapixel": spent,
    }


def _shadow(scene: _Scene, photo: np.ndarray) -> dict[str, float]:
    """The error of a shadow on the ground below the middle of the car and up to 150 pixels off."""
    found, spent = _timed(shadow, photo, scene.alpha)
    rows = np.flatnonzero((scene.alpha > 0).any(1))
    near = cv2.dilate((scene.alpha > 0).astype(np.uint8), np.ones((301, 301), np.uint8)) > 0
    near &= scene.alpha == 0
    near[: (rows[0] + rows[-1]) // 2] = False
    wanted = scene.dark[near]
    return {
        "rmse_of_opacity": float(np.sqrt(((found[near] - wanted) ** 2).mean())),
        "rmse_without_a_shadow": float(np.sqrt((wanted**2).mean())),
        "ms_per_megapixel": spent,
    }


def _render(number: int) -> _Scene:
    rng = np.random.default_rng([11, number])
    design = bodies.draw_design(rng, number)
    scene = studio.draw_studio(rng, WIDTH, HEIGHT, design.length)
    car = render.build_car(design, WIDTH / 960)
    angle = 0.5 + 1.1 * number
    turn = render.turned(angle)
    wheels = place_wheels(car.design, turn, scene.camera)
    own = np.zeros((HEIGHT, WIDTH, 3), np.float32)
    alpha = render.paint_car(own, car, scene, turn, wheels)
    blurred = cv2.GaussianBlur(alpha, (0, 0), 0.7)
    alpha = np.where(blurred < 0.004, 0, np.clip(blurred, 0, 1))
    colours = np.clip(
        cv2.GaussianBlur(own, (0, 0), 0.7) / np.maximum(alpha, 1e-6)[..., None], 0, 255
    )
    feet = [wheel.foot for wheel in wheels]
    body = (car.points @ turn)[: car.parts[0].points.size // 3]
    light = 1 + (studio.shadow(scene, body, feet) - 1) * scene.floor
    street = scenes._street(rng, scene.camera)
    grounds = {
        "studio": scene.backdrop * light[..., None],
        "street": street.backdrop * light[..., None],
        "leaves": _leaves(rng),
        "green": np.full((HEIGHT, WIDTH, 3), (40, 190, 60), np.float32),
    }
    photos = {}
    for name, ground in grounds.items():
        mixed = alpha[..., None] * colours + (1 - alpha[..., None]) * ground
        noise = cv2.GaussianBlur(rng.standard_normal(mixed.shape, np.float32), (0, 0), 0.6)
        photo = np.clip(np.rint(mixed + 3 * noise), 0, 255).astype(np.uint8)
        data = cv2.imencode(".jpg", photo, [cv2.IMWRITE_JPEG_QUALITY, 92])[1]
        photos[name] = np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR))
    return _Scene(alpha.astype(np.float32), colours.astype(np.float32), photos, 1 - light)


def _leaves(rng: np.random.Generator) -> np.ndarray:
    texture = np.zeros((HEIGHT, WIDTH), np.float32)
    for columns, strength in ((8, 30), (32, 25), (120, 30), (480, 20)):
        coarse = rng.normal(0, 1, (columns * HEIGHT // WIDTH, columns)).astype(np.float32)
        texture += strength * cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    return np.clip(np.array((70, 105, 45), np.float32) * (1 + texture[..., None] / 70), 0, 255)


def _mask(alpha: np.ndarray, rng: np.random.Generator, offset: float) -> np.ndarray:
    """`uint8[H, W]`: the opacity as a network that is not quite right would give it."""
    small = cv2.resize(alpha, NETWORK, interpolation=cv2.INTER_AREA)
    columns, rows = np.meshgrid(*(np.arange(side, dtype=np.float32) for side in NETWORK))
    noise = (rng.standard_normal((*small.shape,), np.float32) for _ in range(2))
    moves = (cv2.GaussianBlur(each, (0, 0), 6) for each in noise)
    across, down = (offset * move / np.std(move) for move in moves)
    small = cv2.remap(small, columns + across, rows + down, cv2.INTER_LINEAR)
    soft = cv2.GaussianBlur(small, (0, 0), 0.7)
    return np.rint(255 * cv2.resize(soft, (WIDTH, HEIGHT))).astype(np.uint8)


if __name__ == "__main__":
    sys.exit(main(Command(__doc__, (PlaceOptions, CutoutBenchmarkOptions), run)))
