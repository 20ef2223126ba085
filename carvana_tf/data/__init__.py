"""What a photo, a mask and a fold are; knows no Keras."""
