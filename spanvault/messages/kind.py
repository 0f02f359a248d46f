"""What all messages have in common, and the answers that every request may get."""

from typing import Literal

import msgspec


class Message(msgspec.Struct, tag_field="kind", tag=str.lower):
    """Whatever has a `kind`."""


class Failure(Message):
    """A request that was not carried out: what, and what to do."""

    code: Literal[
        "invalid", "denied", "not_found", "erased", "corrupt", "locked", "full", "unavailable"
    ]
    error: str
    hint: str = ""


class Done(Message):
    """Carried out; nothing to return."""
