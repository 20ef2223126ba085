"""Scores of mask folders against truth, all from per-photo counts."""
