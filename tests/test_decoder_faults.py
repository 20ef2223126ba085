"""Faults in Pillow, libjpeg-turbo and OpenCV themselves: commands name the photo in one line."""

import errno
import os

import cv2
import numpy as np
import PIL.Image
import pytest
import simplejpeg

from carvana_tf import commands
from carvana_tf.data.images import write_gif_mask, write_photo, write_probability
from carvana_tf.errors import UserError
from carvana_tf.failures import OutOfMemory, SystemFailure
from carvana_tf.masks import rle

FAULTS = {
    "memory": MemoryError,
    "library": lambda: RuntimeError("broken\nsecond line"),
    "disk": lambda: OSError(errno.EIO, os.strerror(errno.EIO)),
}
JPEG, GIF = (simplejpeg, "decode_jpeg"), (PIL.Image.core, "gif_decoder")
DECODE, ENCODE, RESIZE = ((cv2, name) for name in ("imdecode", "imencode", "resize"))
ENCODE_GIF = (PIL.Image.core, "gif_encoder")

# Of each command its flags, and the functions of libraries below it.
COMMANDS = {
    "make_folds": ("--dataset_dir=d --n_folds=2 --folds_out=o/f.csv", (GIF,)),
    "check_data": ("--dataset_dir=d", (JPEG, GIF, RESIZE)),
    "cut_out": ("--photo_dir=d/train --pred_mask_dir=p --out_dir=o", (JPEG, ENCODE, RESIZE)),
    "import_masks": (
        "--annotations=ann --photo_dir=d/train --out_dir=o --mask_extension=.gif",
        (ENCODE_GIF,),
    ),
    "export_masks": (
        "--mask_dir=d/train_masks --photo_dir=d/train --out_dir=o --format=labelme",
        (GIF, ENCODE),
    ),
    "decode_submission": ("--submission=s.csv --test_data_dir=d/train --out_dir=o", (ENCODE,)),
    "suggest_photos": (
        "--dataset_dir=e --test_data_dir=d/train --pred_mask_dir=p --out_dir=o",
        (JPEG, RESIZE),
    ),
    "evaluate": ("--dataset_dir=d --pred_mask_dir=p --out_dir=o", (GIF, RESIZE, ENCODE)),
    "encode": (
        "--pred_mask_dir=p --submissions_dir=o --pred_sample_csv= --image_extension=.jpg",
        (DECODE,),
    ),
    "show_augmentation": ("--dataset_dir=d --out=o/s.jpg", (JPEG, GIF, RESIZE)),
    "prepare_dataset": (
        "--dataset_dir=d --photo_dirs=train --mask_dirs=train_masks --size=30x20 --output_dir=o",
        (JPEG, GIF, ENCODE, RESIZE),
    ),
    "make_demo_dataset": (
        "--dataset_dir=o --train_cars=1 --test_cars=1 --views=2 --width=64 --height=48 "
        "--processes=1",
        (ENCODE, ENCODE_GIF, RESIZE),
    ),
}


@pytest.fixture
def dataset(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    random, lines = np.random.default_rng(0), ["img,rle_mask"]
    for i in range(8):
        mask, stem = np.zeros((40, 60), np.bool_), f"c{i // 2}_{i % 2 + 1:02d}"
        mask[10:30, 10 + i : 40] = True
        photo = random.integers(0, 60, (40, 60, 3)) + mask[..., None] * 150
        write_photo(tmp_path / f"d/train/{stem}.jpg", photo.astype(np.uint8))
        write_gif_mask(tmp_path / f"d/train_masks/{stem}_mask.gif", mask)
        grey = cv2.GaussianBlur(mask.astype(np.uint8) * np.uint8(250), (0, 0), 3)
        write_probability(tmp_path / f"p/{stem}.png", grey)
        lines.append(f"{stem}.jpg,{rle.encode_text(mask)}")
    (tmp_path / "s.csv").write_text("\n".join([*lines, ""]))
    call("export_masks", "--mask_dir=d/train_masks --photo_dir=d/train --out_dir=ann")
    return tmp_path


def call(name, flags):
    return commands.find(name).call(flags.split())


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_names_the_photo_in_one_line(dataset, monkeypatch, capsys, name, fault):
    flags, functions = COMMANDS[name]
    for module, function in functions:
        real, calls = getattr(module, function), []

        def fail(*arguments, real=real, calls=calls, **named):
            calls.append(1)
            if len(calls) == 3:
                raise FAULTS[fault]()
            return real(*arguments, **named)

        out = f"o{function}"
        with monkeypatch.context() as patch:
            patch.setattr(module, function, fail)
            said, raised = "", None
            try:
                call(name, flags.replace("=o", f"={out}"))
            except UserError as error:
                said, raised = str(error), error
        printed = capsys.readouterr()
        listed = "".join(path.read_text() for path in dataset.rglob("bad_files.csv"))
        everything = f"{said} {listed} {printed.err} {printed.out}"
        assert calls
        assert any(f"{end}'" in everything for end in (".jpg", ".png", ".gif", ".html")), everything
        assert "\n" not in said and "second line" not in everything
        if function in ("decode_jpeg", "gif_decoder", "imdecode"):
            kind = {"memory": OutOfMemory, "disk": SystemFailure}.get(fault)
            assert kind is None or isinstance(raised, kind), (function, everything)
