"""Losses, metrics, schedules and the training loop."""

from carvana_tf import devices as devices  # first of all: it starts the backend quietly
