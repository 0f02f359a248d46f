"""Another reader of a store, written from storaged/FORMAT.md and spanvault/WIRE.md alone.

It shares no line with the product: the standard library and `cryptography` only. Whoever is given
an object and its DEK, or a store and an unlock key, has the recordings with this:

    python tests/vectors/reader OBJECT --dek HEX
    python tests/vectors/reader OBJECT --keys STORE/keys[/POOL] --unlock FILE
    python tests/vectors/reader STORE --unlock FILE [--passphrase WORDS]

A module a matter: objects, packets, rootfile, keyfiles, shares, intake, ledgers, rows, bodies,
msgpack, signed; store: all of them together.
Held to the same vectors as the product: tests/vectors/test_*.py.
"""


class Fault(ValueError):
    """Something that does not fit. code: a word of FORMAT.md §4.5 or §14."""

    def __init__(self, code: str, place: int = 0) -> None:
        super().__init__(f"{code} at byte {place}")
        self.code = code
