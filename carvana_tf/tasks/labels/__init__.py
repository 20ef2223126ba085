"""The task of labels: which kinds of things a photo shows."""
