"""The rule that makes masks of grey values: a pixel is object where it is greater than this."""

# round(255p) > 127 is p >= 0.5.
DEFAULT_THRESHOLD = 127
# Above it nothing could be object.
HIGHEST_THRESHOLD = 254
