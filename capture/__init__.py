"""Frames from a mirrored port in, recordings in one-second chunks out."""
