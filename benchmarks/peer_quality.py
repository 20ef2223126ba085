"""Masks of segmentation_models.pytorch for docs/quality.md, trained as its users would.

    taskset -c 1 python benchmarks/peer_quality.py --dataset_dir="$CARVANA_DIR" \
        --folds_source=folds.csv --fold=0 --weights=tf_efficientnet_lite0.safetensors \
        --minutes=30 --pred_mask_dir=runs/peer

runs in the environment of requirements-peers.txt. It trains on the photos of the other folds for
so many processor minutes and writes masks of the fold's photos in full size, which `evaluate.py
--compare` sets against ours. Dice and BCE, AdamW, a cosine rate from `--learning_rate` to 0,
photos mirrored and slightly warped, bfloat16, channels_last.
"""

import argparse
import concurrent.futures
import csv
import math
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from peers.importing import import_without_operators
from peers.torch_loss import bce_dice

smp = import_without_operators("segmentation_models_pytorch")

_NETWORKS = {"unet": smp.Unet, "deeplabv3plus": smp.DeepLabV3Plus}


def main() -> None:
    """Trains and predicts."""
    options = _parse()
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    torch.set_num_threads(options.threads)
    network = _network(options).to(memory_format=torch.channels_last)
    trained, predicted = _split(options)
    with concurrent.futures.ThreadPoolExecutor(options.threads) as pool:
        photos = list(pool.map(lambda each: _photo(options, each), trained))
        masks = list(pool.map(lambda each: _mask(options, each), trained))
    steps = _train(network.train(), photos, masks, options, random)
    print(f"{steps} steps, {time.process_time() / 60:.1f} processor minutes")
    options.pred_mask_dir.mkdir(parents=True, exist_ok=True)
    network.eval()
    start = time.perf_counter()
    for stem in predicted:
        _write(network, _photo(options, stem), options.pred_mask_dir / f"{stem}.png")
    print(f"{len(predicted) / (time.perf_counter() - start):.2f} photos/s in prediction")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset_dir", type=Path, required=True, help="with train, train_masks")
    parser.add_argument("--folds_source", type=Path, required=True, help="of make_folds.py")
    parser.add_argument("--fold", type=int, default=0)
    parser.add_argument("--weights", type=Path, required=True, help="timm's .safetensors")
    parser.add_argument("--encoder", default="tu-tf_efficientnet_lite0")
    parser.add_argument("--network", choices=sorted(_NETWORKS), default="unet")
    parser.add_argument(
        "--minutes",
        type=float,
        default=30,
        help="processor minutes of training; 0: predict without, for the speed",
    )
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--height", type=int, default=512)
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--learning_rate", type=float, default=0.001)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pred_mask_dir", type=Path, required=True)
    return parser.parse_args()


def _network(options: argparse.Namespace) -> torch.nn.Module:
    network = _NETWORKS[options.network](options.encoder, encoder_weights=None, classes=1)
    missing, unused = network.encoder.model.load_state_dict(
        load_file(options.weights), strict=False
    )
    print(f"missing weights: {missing or 'none'}; unused: {unused}")
    if missing:
        raise SystemExit("the file does not fit the encoder")
    return network


def _split(options: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Stems to train on and to predict."""
    with options.folds_source.open() as file:
        fold_of = {row["id"]: int(row["fold"]) for row in csv.DictReader(file)}
    stems = sorted(path.stem for path in (options.dataset_dir / "train").glob("*.jpg"))
    # A row is a car; a photo's name is that of the car and its view.
    held_out = [stem for stem in stems if fold_of[stem.rsplit("_", 1)[0]] == options.fold]
    return [stem for stem in stems if stem not in held_out], held_out


def _photo(options: argparse.Namespace, stem: str) -> np.ndarray:
    path = options.dataset_dir / "train" / f"{stem}.jpg"
    photo = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
    if photo is None:
        raise SystemExit(f"{path} cannot be read")
    size = options.width, options.height
    return np.asarray(cv2.resize(photo, size, interpolation=cv2.INTER_AREA))


def _mask(options: argparse.Namespace, stem: str) -> np.ndarray:
    with Image.open(options.dataset_dir / "train_masks" / f"{stem}_mask.gif") as image:
        mask = np.asarray(image.convert("L"))
    size = options.width, options.height
    return np.asarray(cv2.resize(mask, size, interpolation=cv2.INTER_AREA))


def _train(
    network: torch.nn.Module,
    photos: list[np.ndarray],
    masks: list[np.ndarray],
    options: argparse.Namespace,
    random: np.random.Generator,
) -> int:
    optimizer = torch.optim.AdamW(network.parameters(), options.learning_rate)
    steps, start = 0, time.process_time()
    order: list[int] = []
    while (minutes := (time.process_time() - start) / 60) < options.minutes:
        progress = minutes / options.minutes
        for group in optimizer.param_groups:
            group["lr"] = options.learning_rate * (1 + math.cos(math.pi * progress)) / 2
        if len(order) < options.batch_size:
            order += random.permutation(len(photos)).tolist()
        batch = [_augment(photos[i], masks[i], random) for i in order[: options.batch_size]]
        del order[: options.batch_size]
        mask = torch.from_numpy(np.stack([each for _, each in batch]))[:, None] / 255
        with torch.autocast("cpu", torch.bfloat16):
            logits = network(_normalised(np.stack([each for each, _ in batch])))
        optimizer.zero_grad()
        loss = bce_dice(logits.float(), mask)
        loss.backward()
        optimizer.step()
        steps += 1
        if steps % 20 == 0:
            print(f"{steps} steps, {100 * progress:.0f} %, loss {loss.item():.4f}", flush=True)
    return steps


def _augment(
    photo: np.ndarray, mask: np.ndarray, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    height, width = mask.shape
    angle, scale = random.uniform(-5, 5), random.uniform(0.9, 1.1)
    matrix = np.asarray(cv2.getRotationMatrix2D((width / 2, height / 2), angle, scale), float)
    matrix[:, 2] += random.uniform(-0.05, 0.05, 2) * (width, height)
    if random.random() < 0.5:
        matrix[0] = -matrix[0]
        matrix[0, 2] += width - 1
    warped = [
        np.asarray(cv2.warpAffine(each, matrix, (width, height), borderMode=cv2.BORDER_REFLECT_101))
        for each in (photo, mask)
    ]
    return warped[0], warped[1]


def _normalised(photos: np.ndarray) -> torch.Tensor:
    """`uint8[B, H, W, 3]` -> `float32[B, 3, H, W]` on the scale of EfficientNet-Lite."""
    return (torch.from_numpy(photos).permute(0, 3, 1, 2) - 127.0) / 128.0


@torch.inference_mode()
def _write(network: torch.nn.Module, photo: np.ndarray, path: Path) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        logits = network(_normalised(photo[None]))
    probability = logits.float().sigmoid()[0, 0].numpy()
    full = cv2.resize(probability, (1918, 1280), interpolation=cv2.INTER_LINEAR)
    cv2.imwrite(str(path), np.rint(255 * full).astype(np.uint8))


if __name__ == "__main__":
    main()
