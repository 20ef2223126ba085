"""The other programs that are measured next to ours, written as their users would."""
