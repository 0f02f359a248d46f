"""Why is this call missing, silent, one-sided? A capture file through the real core, with reasons.

A process of its own (`python -m capture.explain`), without store, key or daemon: a file in,
documents out (spanvault.explained). Nothing of a call's sound is kept, let alone decrypted.
What is decided: capture.calls.witness tells. For people: spanvault.commands.explain.
"""
