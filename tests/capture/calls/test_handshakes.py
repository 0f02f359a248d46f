"""Media that agrees upon its keys by itself is known by its bytes, whatever signalling says."""

import struct

import pytest

from capture.packets.handshakes import agreed
from spanvault.callline import encrypted
from tests.support.callgen import SECOND, START_NS, answered, phones, talk, udp_frame
from tests.support.running import Run

CALLER, CALLEE = phones(14.0)


def dtls(content: int, message: int = 0) -> bytes:
    return bytes([content]) + b"\xfe\xfd" + bytes(8) + b"\x00\x20" + bytes([message]) + bytes(31)


def zrtp(kind: str) -> bytes:
    head = b"\x10\x00\x00\x01ZRTP" + b"\x00\x00\x00\x07" + b"\x50\x5a" + struct.pack("!H", 3)
    return head + kind.ljust(8).encode() + bytes(16)


AGREED = {
    "a ServerHello": (dtls(22, 2), "srtp_dtls"),
    "a change of cipher": (dtls(20), "srtp_dtls"),
    "a confirmation": (zrtp("Confirm1"), "zrtp"),
}
NOT_AGREED = {
    "a ClientHello that may stay alone": dtls(22, 1),
    "a Hello of ZRTP that may stay alone": zrtp("Hello"),
    "data of some VPN": dtls(23),
    "any bytes": bytes(range(20, 60)),
    "nothing": b"",
}


@pytest.mark.parametrize("name", AGREED)
@pytest.mark.parametrize("signalled", [True, False])
def test_a_call_whose_keys_were_agreed_upon_unheard_is_no_sound(name, signalled):
    payload, flag = AGREED[name]
    run = Run(unmatched_s=5.0).part(sorted([*heard(signalled), said(payload)])).end()
    assert [(flag in call.flags, encrypted(call)) for call in run.calls()] == [(True, True)]


@pytest.mark.parametrize("name", NOT_AGREED)
def test_what_proves_nothing_leaves_a_call_as_it_is(name):
    assert agreed(NOT_AGREED[name]) == ""
    run = Run().part(sorted([*heard(True), said(NOT_AGREED[name])])).end()
    assert [encrypted(call) for call in run.calls()] == [False]


def test_an_agreement_of_the_call_before_says_nothing_of_the_next():
    early = said(dtls(20), at_ns=START_NS - 5 * SECOND)
    run = Run().part([early, *heard(True)]).end()
    assert [encrypted(call) for call in run.calls()] == [False]


def heard(signalled: bool) -> list:
    if signalled:
        return answered(START_NS, CALLER, CALLEE, "a@example")
    return sorted([*talk(START_NS, CALLER, CALLEE), *talk(START_NS, CALLEE, CALLER)])


def said(payload: bytes, at_ns: int = START_NS + 2 * SECOND):
    ends = [(phone.address, phone.rtp_port) for phone in (CALLER, CALLEE)]
    return udp_frame(at_ns, ends[0], ends[1], payload)
