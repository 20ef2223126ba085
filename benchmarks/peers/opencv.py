"""OpenCV's decoders alone, in as many threads as ours: what no pipeline can beat."""

from pathlib import Path

import cv2

from carvana_tf.memory import keep_freed_memory
from carvana_tf.threads import ordered_map
from harness import Rounds


def decode_masks(rounds: Rounds, folders: tuple[str, ...], threads: int) -> None:
    """The PNGs of folders to grey arrays that are thrown away."""
    _decode(rounds, folders, threads, cv2.IMREAD_GRAYSCALE)


def decode_photos(rounds: Rounds, folders: tuple[str, ...], threads: int) -> None:
    """The photos of folders to RGB arrays that are thrown away."""
    _decode(rounds, folders, threads, cv2.IMREAD_COLOR_RGB)


def _decode(rounds: Rounds, folders: tuple[str, ...], threads: int, mode: int) -> None:
    cv2.setNumThreads(1)
    keep_freed_memory()  # as ours: else the kernel's clearing of pages is measured, too
    paths = [str(path) for folder in folders for path in sorted(Path(folder).iterdir())]
    for _ in rounds:
        for _ in ordered_map(lambda path: cv2.imread(path, mode) is None, paths, threads):
            pass
