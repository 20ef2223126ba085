"""Rendered studio cars with exact masks, for demonstrations and tests without a download."""
