"""The other programs that are measured beside ours, written as their users would."""
