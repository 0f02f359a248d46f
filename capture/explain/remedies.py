"""What an administrator can do: a remedy in words for each flag of a call and each count.

Flags: spanvault.remedies. Counts: those of the capture core, by the names it counts under.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Final

from capture.packets import unread
from capture.signalling.siptls import SipTls
from spanvault.explained import Count
from spanvault.messages import Call
from spanvault.remedies import of_flags

# By counter: what it counts, and what can be done.
COUNTS: Final = {
    "sip_unreadable": (
        "damaged SIP messages and keep-alives",
        "If calls are missing: is the capture cut (snap length), or a hop garbling them?",
    ),
    "sdp_unreadable": ("damaged session descriptions", "Is a hop garbling them?"),
    "siprec_unreadable": ("damaged SIPREC metadata", "Its calls bear the names of the leg."),
    "sip_late": ("late copies of messages of calls that were over", ""),
    "call_id_abused": ("INVITEs under one Call-ID, too many for calls", "Look at who sends them."),
    "calls_evicted": ("calls given up for want of room", "Split the file (editcap -c)."),
    "streams_over_limit": ("streams beyond what one call may have", "Look at who sends them."),
    "dtls": ("DTLS packets: media keys are agreed upon unheard", "Record where the PBX ends it."),
    "zrtp": ("ZRTP packets: media may be encrypted end to end", "Switch ZRTP off to record."),
    "opaque_ipsec": (
        "packets of IPsec (ESP): what is in them cannot be recorded here",
        "If calls are missing: mirror where the VPN ends, on its inner side.",
    ),
    "opaque_macsec": (
        "frames of MACsec: what is in them cannot be recorded here",
        "Mirror behind a switch that decrypts them, or switch it off on the link to the mirror.",
    ),
    "opaque_wireguard": (
        "packets of WireGuard: what is in them cannot be recorded here",
        "If calls are missing: mirror where the VPN ends, on its inner side.",
    ),
    "opaque_capwap": (
        "Wi-Fi frames under DTLS (CAPWAP): what is in them cannot be recorded here",
        "Mirror the wired side of the wireless controller.",
    ),
    "stun": ("STUN packets (ICE)", ""),
    "rtcp": ("RTCP packets", ""),
    "slow_fragments_expired": (
        "fragments whose other parts never came",
        'A capture filter by port loses them: add "or ip[6:2] & 0x1fff != 0".',
    ),
    "slow_fragments_cut": ("fragments cut by the snap length", "tcpdump -s 0."),
    "slow_frames_unreadable": ("frames whose headers could not be read", ""),
    "duplicates": (
        "copies of RTP packets, left out before counting",
        "As many as packets? The port mirrors both directions: mirror received frames only (rx).",
    ),
    "unmatched_ignored": (
        "RTP packets of more streams that no call owns than are followed: they are not named here",
        "Is the mirror without its signalling? Else split the file (editcap -c).",
    ),
    "bad_padding": ("RTP packets with impossible padding", ""),
    "clock_steps": ("times that the capture's clock was set", "Let NTP keep it."),
}  # fmt: skip

UNREAD: Final = "If calls are missing: mirror where the same traffic is plain Ethernet or IP."


def remedies(call: Call, answers: Mapping[str, str]) -> list[str]:
    """What can be done about what is flagged of a call. answers: by flag, what is known better."""
    return of_flags(call.flags, answers)


def counts(counters: Mapping[str, int], apart: Counter[str], sip_tls: SipTls) -> list[Count]:
    """What was counted, worth a line. apart: SIP messages that are of no call, by method."""
    found = [
        Count(what, counters[name], remedy)
        for name, (what, remedy) in COUNTS.items()
        if counters.get(name)
    ]
    found += [
        Count(f"frames of {each.what}: what is in them is not read", each.frames, UNREAD)
        for each in unread.told(counters)
    ]
    if sip_tls.connections:
        what = f"connections of SIP over TLS, whose calls cannot be read: between {sip_tls.told}"
        remedy = "Mirror a plain hop, too, as behind the PBX; or switch TLS off between these."
        found.append(Count(what, sip_tls.connections, remedy))
    if total := apart.total():
        methods = ", ".join(f"{method} {count}" for method, count in apart.most_common(6))
        found.append(Count(f"SIP messages outside of calls ({methods})", total))
    return found
