"""Ciphertext copies at other places, verified, and the way back."""
