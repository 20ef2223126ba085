"""Training samples by albumentations in a PyTorch DataLoader, as their users write it."""

import albumentations
import cv2
import numpy as np
import PIL.Image
import torch
from albumentations.core.composition import Compose
from torch.utils.data import DataLoader, Dataset

from carvana_tf.data.presets import PRESETS, Augmentation, limits
from harness import Rounds


class _Pairs(Dataset):
    def __init__(self, pairs: tuple[tuple[str, str], ...], transform: Compose) -> None:
        self._pairs = pairs
        self._transform = transform

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        photo, mask = self._pairs[number]
        made = self._transform(
            image=cv2.imread(photo, cv2.IMREAD_COLOR_RGB),
            mask=np.asarray(PIL.Image.open(mask).convert("L")),
        )
        return torch.from_numpy(made["image"]), torch.from_numpy(made["mask"])


def load(
    rounds: Rounds, pairs: tuple[tuple[str, str], ...], crop: int, preset: str, threads: int,
    crop_first: bool,
) -> None:  # fmt: skip
    """Draws each photo once, in worker processes.

    Args:
        rounds: What to measure.
        pairs: Paths of photos and of their masks.
        crop: Height and width of the windows.
        preset: The same value of --augmentation as ours.
        threads: How many processes.
        crop_first: Crop before the geometry instead of after it: cheaper, but then the
            borders are invented where the photo goes on.
    """
    transform = operations(PRESETS[preset], crop, crop_first)
    loader = DataLoader(
        _Pairs(pairs, transform),
        batch_size=1,
        shuffle=True,
        num_workers=threads,
        persistent_workers=True,
        worker_init_fn=_one_thread,
    )
    for _ in rounds:
        for _ in loader:
            pass


def operations(preset: Augmentation, crop: int, crop_first: bool) -> Compose:
    """The operations of one of our presets.

    Raises:
        ValueError: It has some that are not translated.
    """
    untranslated = [
        name for name in ("vflip", "hsv", "grey_car", "clahe", "shear") if getattr(preset, name) > 0
    ]
    if untranslated:
        raise ValueError(f"{', '.join(untranslated)} are not translated to albumentations.")
    geometry = [
        albumentations.HorizontalFlip(p=preset.hflip),
        albumentations.Affine(
            scale={
                "x": tuple(z * s for z, s in zip(preset.zoom, preset.zoom_x, strict=True)),
                "y": tuple(z * s for z, s in zip(preset.zoom, preset.zoom_y, strict=True)),
            },
            keep_ratio=preset.zoom != (1.0, 1.0),
            translate_percent={
                "x": limits(preset.shift_x),
                "y": limits(preset.shift_y),
            },
            rotate=limits(preset.rotation),
            interpolation=cv2.INTER_LINEAR,
            mask_interpolation=cv2.INTER_LINEAR,
            border_mode=cv2.BORDER_REFLECT_101,
            p=preset.geometry,
        ),
    ]
    window = [albumentations.RandomCrop(crop, crop)]
    brightness, contrast, saturation = preset.brightness, preset.contrast, preset.saturation
    colour = [
        albumentations.RandomBrightnessContrast(
            brightness.limit, 0, brightness_by_max=False, p=brightness.probability
        ),
        albumentations.RandomBrightnessContrast(0, contrast.limit, p=contrast.probability),
        albumentations.ColorJitter(
            (1, 1), (1, 1), tuple(1 + share for share in limits(saturation.limit)), (0, 0),
            p=saturation.probability,
        ),
        albumentations.RGBShift(
            *[limits(preset.channel_shift.limit)] * 3,
            p=preset.channel_shift.probability,
        ),
        albumentations.ToGray(p=preset.grey),
    ]  # fmt: skip
    placed = [*window, *geometry] if crop_first else [*geometry, *window]
    wanted = [each for each in (*placed, *colour) if each.p > 0]
    return albumentations.Compose(wanted)


def _one_thread(_: int) -> None:
    cv2.setNumThreads(0)
