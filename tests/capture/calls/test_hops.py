"""One call whose media is encrypted between some hosts and not between others: RFC 4568, 5763.

So it is where a proxy has a relay that encrypts for one side: every message is heard on both hops,
under one Call-ID.
"""

import pytest

from tests.support.conversation import Leg, Wire, sdp, sounds

NEAR, FAR = ("10.0.0.1:5060", "10.0.0.9:5060"), ("10.0.0.9:5060", "10.0.0.2:5060")
# Where each party is told to send to, on the hop of the caller and on that of the callee.
ENDS = {NEAR: ("10.0.0.1:4000", "10.0.0.8:9000"), FAR: ("10.0.0.8:9002", "10.0.0.2:5000")}
KEY = "a=crypto:1 AES_CM_128_HMAC_SHA1_80 inline:" + "QUJD" * 10
UNUSABLE = "a=crypto:1 SOME_SUITE_OF_ITS_OWN inline:" + "QUJD" * 10
PRINT = "a=fingerprint:sha-256 " + ":".join(["AB"] * 32)


def bridged(wire: Wire, near: tuple[str, ...], far: tuple[str, ...]) -> Leg:
    """near, far: what the descriptions of each hop say of encryption."""
    leg = Leg(wire)
    said = {hosts: [sdp(end, more=more) for end in ENDS[hosts]]
            for hosts, more in ((NEAR, near), (FAR, far))}  # fmt: skip
    for hosts in (NEAR, FAR):
        leg.hosts = dict(zip(("caller", "callee"), hosts, strict=True))
        leg.request("INVITE", "caller", said[hosts][0], in_dialog=False, branch=hosts[0])
    for hosts in (FAR, NEAR):
        leg.hosts = dict(zip(("caller", "callee"), hosts, strict=True))
        leg.reply(200, body=said[hosts][1], branch=hosts[0])
        here, there = ENDS[hosts]
        wire.rtp(here, there, ssrc=1)
        wire.rtp(there, here, ssrc=2)
    wire.wait(5)
    return leg


@pytest.mark.parametrize(("near", "far", "flags", "clear"), [
    ((KEY,), (), ["srtp_sdes"], True),
    ((), (KEY,), ["srtp_sdes"], True),
    ((KEY,), (KEY,), ["srtp_sdes"], False),
    ((PRINT,), (), ["srtp_dtls"], False),
    ((), (PRINT,), ["srtp_dtls"], False),
    ((KEY,), (PRINT,), ["srtp_dtls", "srtp_sdes"], False),
    ((UNUSABLE,), (), ["srtp_no_key", "srtp_sdes"], False),
    ((), (UNUSABLE,), ["srtp_no_key", "srtp_sdes"], False),
    ((), (), [], None),
])  # fmt: skip
def test_what_is_encrypted_on_one_hop_is_never_taken_for_sound(
    wire: Wire, near: tuple[str, ...], far: tuple[str, ...], flags: list[str], clear: bool | None
):
    """What keys open is told from what is in the clear beside it. Without keys nothing is heard."""
    bridged(wire, near, far).bye()
    (call,) = wire.end()
    assert call.flags == flags
    now = any(span.until_ns is None for span in call.in_clear)
    assert now == bool(clear)
    assert [party for party, _, _ in sounds(call)] == ["caller", "callee"] * 2
