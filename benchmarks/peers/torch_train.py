"""A training step as a PyTorch user would write it: bfloat16 autocast, channels_last."""

import os

import torch

from harness import Rounds
from inputs import random_batch
from peers.torch_loss import bce_dice
from peers.torch_twins import TWINS


def train(
    rounds: Rounds, network: str, size: int, batch_size: int, steps: int, compiled: bool
) -> None:
    """Trains the twin of one of our networks on batches that lie in memory.

    Args:
        rounds: What to measure: `steps` batches each.
        network: "resnet50" or "mobilenet".
        size: Height and width of the photos.
        batch_size: Photos per batch.
        steps: Batches per round.
        compiled: Whether to `torch.compile` the network.
    """
    torch.set_num_threads(os.cpu_count() or 1)
    twin = TWINS[network]().to(memory_format=torch.channels_last).train()
    forward = torch.compile(twin) if compiled else twin
    optimizer = torch.optim.Adam(twin.parameters(), 1e-4)
    photos, masks = (
        torch.from_numpy(array).permute(0, 3, 1, 2).split(batch_size)
        for array in random_batch(size, batch_size * steps)
    )
    for _ in rounds:
        for photo, mask in zip(photos, masks, strict=True):
            with torch.autocast("cpu", torch.bfloat16):
                logits = forward(photo)
            optimizer.zero_grad()
            bce_dice(logits, mask).backward()
            optimizer.step()
