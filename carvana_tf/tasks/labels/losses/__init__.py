"""Losses on logits of labels, one value per photo, computed in float32.

Every loss takes targets `[B, K]` of 0 and 1 and logits `[B, K]` and returns `float32[B]`. Each
and its gradient is finite for every finite input, photos without a label and with all of them
included.
"""

from carvana_tf.tasks.losses import LossTable

LOSSES: dict[str, tuple[str, tuple[str, ...]]] = {
    "ranking": ("ranking", ()),
    "bce": ("sigmoid", ()),
    "focal": ("sigmoid", ("alpha", "gamma")),
}
"""Name of `--loss_function` -> the module here with the function of this name, and its keywords.

The modules need Keras and are loaded when a loss is asked for.
"""

_TABLE = LossTable(__name__, LOSSES, example="focal:gamma=2,alpha=0.25")
parse, check, get = _TABLE.parse, _TABLE.check, _TABLE.get
