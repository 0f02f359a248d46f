"""The differences from a truth that stand, each with its reason: an RFC, or the truth's error.

An entry that explains nothing any more fails the run (test_captures.py).
"""

import re
from typing import Final, NamedTuple

BIT_FLIPPED: Final = "s32 is s31 with bits flipped at random; the truth has what tshark read there"


class Explained(NamedTuple):
    """Texts that match pattern are explained by reason."""

    pattern: str
    reason: str


EXPLAINED: Final[dict[str, list[Explained]]] = {
    "s12": [
        Explained(
            r"channel caller g722 .*: (packets 853, truth 960|seconds 17\.048, truth 19\.183)",
            "RTP that goes on behind a BYE that the first hop answered is the call's for a grace "
            "of 2 s, then a recording of its own: RFC 3261 §15 has the sender stop at the BYE",
        )
    ],
    "s14": [
        Explained(
            r"callee '0', truth '192\.168\.5\.11'",
            "the To is sip:0@192.168.5.11, its user 0 (RFC 3261 §19.1.1); the truth took the host",
        )
    ],
    "s32": [
        Explained(r"pcma 192\.168\.1\.2:30000 → .* was not recorded", BIT_FLIPPED),
        Explained(r"caller '3510723', truth '3510\\x14723'|outcome 'no_answer'", BIT_FLIPPED),
        Explained(r"caller 'voi18062', truth ''|^85216695.*: no such call", BIT_FLIPPED),
    ],
    "s34": [
        Explained(
            r"callee '33', truth '30'",
            "the INVITE is to 33; the truth took the To of a REGISTER that bears the same Call-ID",
        )
    ],
    "s45": [
        Explained(
            r"1-4247@10\.0\.2\.20: no such call|2091060b-.*: no such call",
            "a BYE and an ACK whose INVITE came before the capture began are calls heard from the "
            "middle on (RFC 3261 §12.2, §15); the truth counts only calls with an INVITE",
        )
    ],
}


def unexplained(case: str, found: list[str]) -> list[str]:
    """What of these differences has no reason."""
    return [text for text in found if not _entry(case, text)]


def outlived(case: str, found: list[str]) -> list[str]:
    """The patterns of a case that explain nothing that was found."""
    return [
        one.pattern
        for one in EXPLAINED.get(case, [])
        if not any(re.search(one.pattern, text) for text in found)
    ]


def reasons(case: str, found: list[str]) -> list[str]:
    """Why what was found stands, each reason once."""
    entries = (_entry(case, text) for text in found)
    return list(dict.fromkeys(one.reason for one in entries if one))


def _entry(case: str, text: str) -> Explained | None:
    return next((one for one in EXPLAINED.get(case, []) if re.search(one.pattern, text)), None)
