"""Recordings written, gone on with after a restart, and read back."""
