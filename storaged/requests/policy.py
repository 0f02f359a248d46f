"""Who may ask what. Whatever is not in the table is denied.

What a caller dialled, card numbers and PINs among it, takes a right beside the role, which the
client's certificate must bear where storaged keeps it.
Source: WIRE.md §2. Who is at the other end: spanvault.transport.
"""

from typing import Final

from spanvault import messages as m
from spanvault.transport import Identity, Role

MAY: Final[dict[Role, frozenset[type[m.Message]]]] = {
    "capture": frozenset({m.Health}),
    # Receipts are the replicator's alone: nobody else made the copy.
    # No Import: whoever holds the replicator's key could make a fresh store use keys of his own.
    "replicator": frozenset(
        {m.Status, m.Health, m.Feed, m.ReadObject, m.Receipt, m.ErasureReceipt, m.Return}
    ),
    "operator": frozenset(
        {
            m.Status, m.Health, m.Search, m.Several, m.Get, m.Fetch, m.Verify, m.Feed,
            m.ReadObject, m.Import, m.Erase, m.Erasures, m.Certify,
            m.Keys, m.Unlock, m.OfferShare, m.Lock, m.Rotate, m.Recipients, m.Mend,
            m.Move, m.Check,
        }
    ),
}  # fmt: skip

# What a person learns from: its line in the access log is on disk before the reply leaves.
# So is that of what changes who can hear.
REVEALING: Final[frozenset[type[m.Message]]] = frozenset(
    {
        m.Search,
        m.Several,
        m.Get,
        m.Fetch,
        m.Erase,
        m.Move,
        m.Unlock,
        m.OfferShare,
        m.Lock,
        m.Rotate,
        m.Recipients,
    }
)
# What cannot be taken back, and what opens a pool or changes who can: its line is on disk before it
# is begun, or it is not done. Not Lock: it takes nothing but hearing.
BEFOREHAND: Final[frozenset[type[m.Message]]] = frozenset(
    {m.Erase, m.Move, m.Unlock, m.OfferShare, m.Rotate, m.Recipients}
)
# What must work on a full disk, or nobody could find out that it is full.
WITHOUT_LOG: Final[frozenset[type[m.Message]]] = frozenset({m.Status, m.Health})


def may_ask(role: Role, request: m.Message) -> bool:
    """Whether this role may send this request."""
    return type(request) in MAY.get(role, frozenset())


def denial(who: Identity, request: m.Message) -> tuple[str, str] | None:
    """Why this client may not send this request, and what to do; None if it may."""
    if not may_ask(who.role, request):
        kind = type(request).__name__
        return f"role {who.role} may not ask {kind}", "Use an operator's certificate."
    if isinstance(request, m.Fetch) and request.digits and "digits" not in who.rights:
        return (
            f"{who} may not have digits",
            "Who may is decided in storaged's clients folder: rights = digits (docs/operating.md).",
        )
    return None


def may_ingest(role: Role) -> bool:
    """Whether this role may send calls and media."""
    return role == "capture"
