"""Prediction as a PyTorch user would write it: a DataLoader, a compiled network, OpenCV.

channels_last, `inference_mode`, bfloat16 and `torch.compile`; photos are decoded and padded
by two worker processes, PNGs are written by the main one.
"""

import os
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn
from torch._inductor import config as inductor
from torch.utils.data import DataLoader, Dataset

from harness import Rounds
from inputs import read_layers
from peers.importing import import_without_operators

_STRIDE = 32


class _Photos(Dataset):
    """The photos of a folder, padded: (number, `uint8[3, H, W]`, rows, columns)."""

    def __init__(self, folder: str) -> None:
        self.paths = sorted(Path(folder).iterdir())

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> tuple[int, torch.Tensor, int, int]:
        photo = np.asarray(cv2.imread(str(self.paths[number]), cv2.IMREAD_COLOR_RGB))
        height, width = photo.shape[:2]
        margins = (0, -height % _STRIDE, 0, -width % _STRIDE)
        padded = cv2.copyMakeBorder(photo, *margins, cv2.BORDER_REFLECT_101)
        return number, torch.from_numpy(padded).permute(2, 0, 1), height, width


def predict_twin(
    rounds: Rounds, network: str, model: str, photos: str, out: str, freeze: bool
) -> None:
    """Predicts a folder with the twin of one of our networks.

    Args:
        rounds: What to measure.
        network: "resnet50" or "mobilenet".
        model: Our model file; its weights are copied.
        photos: Folder of photos.
        out: Folder of PNGs.
        freeze: Whether Inductor may fold weights and batch normalisation (its `freezing`).
    """
    from peers.torch_twins import TWINS, copy_weights

    inductor.freezing = freeze
    twin = TWINS[network]()
    copy_weights(read_layers(model), twin)
    _predict(rounds, twin, photos, out)


def predict_smp(rounds: Rounds, photos: str, out: str) -> None:
    """Predicts a folder with segmentation_models.pytorch's Unet-resnet50 of random weights.

    It is a smaller network than ours, at 55 % of the operations.
    """
    _predict(
        rounds,
        _Normalised(
            import_without_operators("segmentation_models_pytorch").Unet(
                "resnet50", encoder_weights=None
            )
        ),
        photos,
        out,
    )


class _Normalised(nn.Module):
    """Puts raw photos on ImageNet's scale before a network."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, photo: torch.Tensor) -> torch.Tensor:
        mean = torch.tensor([123.675, 116.28, 103.53]).view(1, 3, 1, 1)
        std = torch.tensor([58.395, 57.12, 57.375]).view(1, 3, 1, 1)
        dtype = next(self.network.parameters()).dtype
        return self.network(((photo.float() - mean) / std).to(dtype)).float()


def _predict(rounds: Rounds, network: nn.Module, photos: str, out: str) -> None:
    torch.set_num_threads(os.cpu_count() or 1)
    network = network.eval().to(torch.bfloat16).to(memory_format=torch.channels_last)
    compiled: Callable[[torch.Tensor], torch.Tensor] = torch.compile(network)
    dataset = _Photos(photos)
    loader = DataLoader(
        dataset, batch_size=1, num_workers=2, persistent_workers=True, worker_init_fn=_one_thread
    )
    Path(out).mkdir(parents=True, exist_ok=True)
    with torch.inference_mode():
        for _ in rounds:
            for numbers, batch, heights, widths in loader:
                batch = batch.contiguous(memory_format=torch.channels_last)
                probabilities = compiled(batch).sigmoid()
                values = (probabilities * 255).round().to(torch.uint8).numpy()[:, 0]
                for number, value, height, width in zip(
                    numbers.tolist(), values, heights.tolist(), widths.tolist(), strict=True
                ):
                    target = Path(out) / f"{dataset.paths[number].stem}.png"
                    cv2.imwrite(str(target), value[:height, :width])


def _one_thread(_: int) -> None:
    cv2.setNumThreads(0)
