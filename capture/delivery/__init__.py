"""Batches to storaged: kept until acknowledged, in memory, then sealed on disk."""
