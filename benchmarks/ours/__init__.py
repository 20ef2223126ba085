"""This toolkit's own side of the comparisons, through the library that the scripts call."""

from carvana_tf.memory import keep_freed_memory

keep_freed_memory()  # as every script does
