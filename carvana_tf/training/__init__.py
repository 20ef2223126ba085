"""Losses, metrics, schedules and the training loop."""
