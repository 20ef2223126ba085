"""Losses on probabilities, one value per photo, computed in float32.

Every loss takes `y_true` and `y_pred` of shape `[B, H, W, 1]` with values in 0..1
(targets may be soft where a mask was resized) and returns `float32[B]`. Parameters are
keywords whose defaults are the published values. The published systems pool their sums
over the batch; here every photo is on its own, so that it weighs the same whatever else
its batch holds. Every loss and its gradient is finite for every input, certainty
(0 and 1), empty and full masks included.

Sources: the 1st-place solution is asanakoy/kaggle_carvana_segmentation, the 4th-place solution
killthekitten/kaggle-carvana-2017; two more are by sohyongsheng (kaggle-carvana) and by
AlbertoSabater.
"""

from carvana_tf.tasks.losses import LossTable

LOSSES: dict[str, tuple[str, tuple[str, ...]]] = {
    "bce_dice": ("combined", ("bce_weight", "dice_weight", "smooth")),
    "dice": ("overlap", ("smooth",)),
    "crossentropy": ("pixelwise", ()),
    "crossentropy_boot": ("pixelwise", ("beta",)),
    "boot_soft": ("combined", ("beta", "bce_weight", "dice_weight")),
    "boot_hard": ("combined", ("beta", "bce_weight", "dice_weight")),
    "online_bootstrapping": ("pixelwise", ("pixels", "threshold")),
    "dice_coef_loss_border": ("contour", ("border_weight", "dice_weight")),
    "bce_dice_loss_border": ("contour", ("border_weight", "dice_weight")),
    "weighted_bce_dice": ("contour", ("boundary_weight",)),
    "log_dice": ("combined", ("smooth",)),
    "weighted_log_dice": ("contour", ("boundary_weight",)),
    "distance_weighted": ("contour", ("strength", "sigma")),
    "jaccard": ("overlap", ("smooth",)),
    "bce_jaccard": ("combined", ("bce_weight", "jaccard_weight", "smooth")),
    "focal": ("pixelwise", ("alpha", "gamma")),
    "tversky": ("overlap", ("alpha", "beta", "smooth")),
}
"""Name of `--loss_function` -> the module here with the function of this name, and its keywords.

The modules need Keras and are loaded when a loss is asked for.
"""

_WHOLE = ("pixels",)
"""Keywords that are whole numbers."""

_TABLE = LossTable(
    __name__,
    LOSSES,
    example="bce_dice:bce_weight=1,dice_weight=1",
    whole=_WHOLE,
    positive={"smooth": "an empty mask gives 0 / 0"},
)
parse, check, get = _TABLE.parse, _TABLE.check, _TABLE.get
