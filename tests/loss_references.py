"""The losses written out a second time, in NumPy and SciPy float64, for one photo.

`t` and `p` are `[H, W]` in 0..1. Nothing here is shared with the code under test.
"""

import numpy as np
from scipy import ndimage


def pixel_bce(t, p):
    t, p = t.astype(np.float64), p.astype(np.float64)
    return -t * np.log(np.maximum(p, 1e-7)) - (1 - t) * np.log(np.maximum(1 - p, 1e-7))


def bce(t, p):
    return pixel_bce(t, p).mean()


def dice_index(t, p, smooth=1.0):
    t, p = t.astype(np.float64), p.astype(np.float64)
    return (2 * (t * p).sum() + smooth) / (t.sum() + p.sum() + smooth)


def dice(t, p, smooth=1.0):
    return 1 - dice_index(t, p, smooth)


def jaccard(t, p, smooth=1.0):
    t, p = t.astype(np.float64), p.astype(np.float64)
    return 1 - ((t * p).sum() + smooth) / ((t + p - t * p).sum() + smooth)


def tversky(t, p, alpha=0.3, beta=0.7, smooth=1.0):
    t, p = t.astype(np.float64), p.astype(np.float64)
    both, false_positive, false_negative = t * p, (1 - t) * p, t * (1 - p)
    total = both.sum() + alpha * false_positive.sum() + beta * false_negative.sum()
    return 1 - (both.sum() + smooth) / (total + smooth)


def bce_dice(t, p, bce_weight=0.2, dice_weight=0.8, smooth=1.0):
    return bce_weight * bce(t, p) + dice_weight * dice(t, p, smooth)


def hard_boot(t, p, beta=0.9):
    return bce(beta * t.astype(np.float64) + (1 - beta) * (p > 0.5), p)


def boot_hard(t, p, beta=0.95, bce_weight=0.2, dice_weight=0.8):
    return bce_weight * hard_boot(t, p, beta) + dice_weight * dice(t, p)


def boot_soft(t, p, beta=0.95, bce_weight=0.2, dice_weight=0.8):
    soft = bce(beta * t.astype(np.float64) + (1 - beta) * p, p)
    return bce_weight * soft + dice_weight * dice(t, p)


def online_bootstrapping(t, p, pixels=32768, threshold=0.3):
    errors = np.abs(t - p).ravel()
    hardest = np.argsort(-errors, kind="stable")[:pixels]
    kept = hardest[errors[hardest] > threshold]
    return pixel_bce(t, p).ravel()[kept].mean() if len(kept) else 0.0


def band(t):
    near = [
        ndimage.maximum_filter(mask.astype(np.float64), size=21, mode="constant", cval=0.0)
        for mask in (t, 1 - t)
    ]
    return near[0] * near[1] > 0.5


def dice_border(t, p, border_weight=0.05, dice_weight=0.95):
    inside = band(t)
    return border_weight * dice(t[inside], p[inside]) + dice_weight * dice(t, p)


def bce_border(t, p, border_weight=0.05, dice_weight=0.95):
    inside = band(t)
    border = pixel_bce(t, p)[inside].mean() if inside.any() else 0.0
    return border_weight * border + dice_weight * dice(t, p)


def boundary_weights(t, boundary_weight):
    heights, radii = [0, 128, 256, 512, 1024, 1280], [0, 5, 10, 10, 20, 25]
    side = 2 * max(1, int(np.interp(t.shape[0], heights, radii) + 0.5)) + 1
    sums = ndimage.uniform_filter(t.astype(np.float64), side, mode="constant") * side**2
    pixels = ndimage.uniform_filter(np.ones(t.shape), side, mode="constant") * side**2
    # Whole numbers, where they are so: the mean may be 0.01 exactly.
    sums = np.where(np.abs(sums - np.rint(sums)) < 1e-6, np.rint(sums), sums)
    mean = sums / np.rint(pixels)
    weights = np.where((mean >= 0.01) & (mean <= 0.99), boundary_weight, 1.0)
    return weights * t.size / weights.sum()


def weighted_parts(t, p, boundary_weight):
    w = boundary_weights(t, boundary_weight)
    t, p = t.astype(np.float64), p.astype(np.float64)
    overlap = (w**2 * t * p).sum()
    total = (w**2 * t).sum() + (w**2 * p).sum()
    return (w * pixel_bce(t, p)).sum() / w.sum(), (2 * overlap + 1) / (total + 1)


def weighted_bce_dice(t, p, boundary_weight=3.0):
    cost, index = weighted_parts(t, p, boundary_weight)
    return cost + 1 - index


def weighted_log_dice(t, p, boundary_weight=3.0):
    cost, index = weighted_parts(t, p, boundary_weight)
    return cost - np.log(index)


def contour_distance(mask):
    """To the nearest pixel of the other class; infinite where there is none."""
    if mask.all() or not mask.any():
        return np.full(mask.shape, np.inf)
    inside, outside = (ndimage.distance_transform_edt(m) for m in (mask, ~mask))
    return np.where(mask, inside, outside)


def distance_weighted(t, p, strength=10.0, sigma=10.0):
    mask = t > 0.5
    distance = contour_distance(mask)
    weights = strength * np.exp(-(distance**2) / (2 * sigma**2)) * (distance <= 4 * sigma)
    for one_class in (mask, ~mask):
        if one_class.any():
            weights[one_class] += 0.5 / one_class.mean()
    return (weights * pixel_bce(t, p)).mean() + dice(t, p)


def log_dice(t, p, smooth=1.0):
    return bce(t, p) - np.log(dice_index(t, p, smooth))


def bce_jaccard(t, p, bce_weight=1.0, jaccard_weight=1.0, smooth=1.0):
    return bce_weight * bce(t, p) + jaccard_weight * jaccard(t, p, smooth)


def focal(t, p, alpha=0.25, gamma=2.0):
    t, p = t.astype(np.float64), p.astype(np.float64)
    foreground = -alpha * t * (1 - p) ** gamma * np.log(np.maximum(p, 1e-7))
    background = -(1 - alpha) * (1 - t) * p**gamma * np.log(np.maximum(1 - p, 1e-7))
    return (foreground + background).mean()


REFERENCES = {
    "bce_dice": bce_dice,
    "dice": dice,
    "crossentropy": bce,
    "crossentropy_boot": hard_boot,
    "boot_soft": boot_soft,
    "boot_hard": boot_hard,
    "online_bootstrapping": online_bootstrapping,
    "dice_coef_loss_border": dice_border,
    "bce_dice_loss_border": bce_border,
    "weighted_bce_dice": weighted_bce_dice,
    "log_dice": log_dice,
    "weighted_log_dice": weighted_log_dice,
    "distance_weighted": distance_weighted,
    "jaccard": jaccard,
    "bce_jaccard": bce_jaccard,
    "focal": focal,
    "tversky": tversky,
}
