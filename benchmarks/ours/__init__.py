"""This toolkit's own side of the comparisons, through the library that the scripts call."""
