"""From photos and a model to a folder of probability PNGs."""

from carvana_tf import devices as devices  # first of all: it starts the backend quietly
