"""Scores of mask folders against ground truth, all from per-photo counts."""
