"""Calls that go: asked for, due, or moved up; their keys destroyed, and the proof of it."""
