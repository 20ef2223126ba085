"""From photos and a model to a folder of probability PNGs."""
