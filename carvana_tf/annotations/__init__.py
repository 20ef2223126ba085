"""Exports of annotation tools into masks, and masks into what these tools read; knows no Keras."""
