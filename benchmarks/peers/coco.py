"""Run lengths by pycocotools."""

from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as coco

from harness import Rounds


def run_lengths(rounds: Rounds, folder: str, count: int, times: int) -> None:
    """The first masks of a folder, in memory, to compressed run lengths, `times` times.

    They go row by row, as a submission has them; its text would still have to be made of
    them.
    """
    paths = sorted(Path(folder).iterdir())[:count]
    greys = [np.asarray(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)) for path in paths]
    masks = [(grey > 127).astype(np.uint8) for grey in greys]
    for _ in rounds:
        for mask in masks * times:
            coco.encode(mask.T)  # the transpose is in Fortran order, as it wants: no copy
