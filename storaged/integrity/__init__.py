"""Whether everything is still there, byte for byte; and what brings it back."""
