"""A pool's keys: on disk, in a token, opened; shares of them."""
