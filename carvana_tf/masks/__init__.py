"""Masks after prediction: run-length encoding and submissions; knows no Keras."""
