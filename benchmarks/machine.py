"""What a figure was measured on: one line on the hardware, one on the programs."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

from carvana_tf.environment import cpuinfo, processor_flags

_PACKAGES = (
    *("tensorflow", "keras", "openvino", "nncf", "torch", "segmentation_models_pytorch"),
    *("albumentations", "pycocotools", "opencv-python", "opencv-python-headless", "pillow"),
    "numpy",
)
# Instructions that decide how fast a network of few bits runs.
_INSTRUCTIONS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")


def hardware() -> str:
    """Processor, cores, instructions for networks, and memory."""
    found = [name for name in _INSTRUCTIONS if name in processor_flags()]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    processor = cpuinfo("model name") or platform.processor() or "unknown processor"
    return f"{processor}, {os.cpu_count()} cores, {' '.join(found)}, {memory:.0f} GiB"


def commit() -> str:
    """The commit of this toolkit, with a + where code was changed since; "" outside of Git."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parents[1]), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!*.csv")
    return git("rev-parse", "--short=7", "HEAD") + ("+" if changed else "")


def software() -> str:
    """Versions of Python and of the packages that were compared, as far as installed."""
    words = [f"python {platform.python_version()}"]
    for name in _PACKAGES:
        try:
            words.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return ", ".join(words)
