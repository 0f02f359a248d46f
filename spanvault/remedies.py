"""What an administrator can do about a flag of a call, in words. What flags mean: docs/calls.md.

Shown by `spanvault show` and `spanvault explain`, which may know better why one is there.
"""

from collections.abc import Iterable, Mapping
from typing import Final

FLAGS: Final = {
    "no_media": "Answered without any RTP: is the path of the media mirrored, or only the PBX?",
    "one_way": "Only one party was heard: is the mirror set to both directions of the port?",
    "started_mid_call": "The capture began during the call, or its INVITE took another way.",
    "no_signalling": "Its signalling was not heard: is it mirrored, too, and not over TLS?",
    "record_missing": "The call's own record never came: does the capture that heard it run?",
    "ambiguous_media": "No SDP was heard and several streams fit: capture the call's beginning.",
    "sip_cut": "The capture kept only the beginning of messages: tcpdump -s 0.",
    "sip_tls": "A hop of its signalling is encrypted: mirror a plain hop, too.",
    "srtp_no_key": "SRTP without a key that can be used: change the phones' SRTP suite.",
    "srtp_dtls": "The keys never cross the wire (DTLS): record where the PBX terminates it.",
    "zrtp": "The phones may encrypt end to end (ZRTP): switch it off to record.",
    "fax": "T.38 is not RTP and not recorded: a fax server keeps faxes.",
    "hold": "On hold: silence or music on hold is what was sent.",
    "mirrored_twice": "Every packet came twice: mirror received frames only (rx).",
    "clock_set": "The capture's clock was set during it: let NTP keep it. Lengths are right.",
    "capture_loss": "The capture itself lost frames: see `spanvault status`.",
}


def of_flags(flags: Iterable[str], known_better: Mapping[str, str] | None = None) -> list[str]:
    """A line for each flag about which something can be done. known_better: remedies by flag."""
    known = {**FLAGS, **(known_better or {})}
    return [f"{flag}: {known[flag]}" for flag in flags if flag in known]
