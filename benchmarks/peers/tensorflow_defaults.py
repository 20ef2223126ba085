"""Imported before all that starts TensorFlow: it starts as it would by itself.

`carvana_tf.devices` has it use oneDNN on processors without AVX-512, too; this undoes it. The list
is that of `IsMKLEnabled` in TensorFlow's tensorflow/core/util/util.cc.
"""

import os

from carvana_tf.environment import processor_flags

_WITH_ONEDNN = {"avx512_vnni", "avx512_bf16", "avx_vnni", "amx_tile", "amx_int8", "amx_bf16"}

os.environ["TF_ENABLE_ONEDNN_OPTS"] = str(int(bool(_WITH_ONEDNN & processor_flags())))
