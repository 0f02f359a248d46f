"""The pools of a store: their files, what waits for them, and which are open."""
