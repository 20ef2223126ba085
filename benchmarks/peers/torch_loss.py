"""The loss that PyTorch users train masks with."""

import torch
from torch.nn import functional as F


def bce_dice(logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy and soft Dice loss per photo, their means added, `[B, 1, H, W]`."""
    probabilities = logits.sigmoid()
    both = (probabilities * mask).sum((1, 2, 3))
    dice = (2 * both + 1) / (probabilities.sum((1, 2, 3)) + mask.sum((1, 2, 3)) + 1)
    return F.binary_cross_entropy_with_logits(logits, mask) + (1 - dice).mean()
