"""RTP that begins while a fax is on: whose it is, once it has proved to be RTP. ITU-T T.38."""

import struct
from dataclasses import replace

import pytest

from tests.support.callgen import SECOND, START_NS, Dialogue, Frame, Phone, phones, udp_frame
from tests.support.running import Run
from tests.support.unsignalled import both, speech, tone

CALLER, CALLEE = phones(0.1)
NEW = replace(CALLER, ssrc=0xFA4)  # who begins anew amid the fax


def t38(phone: Phone) -> str:
    return (
        f"v=0\r\no=- 1 2 IN IP4 {phone.address}\r\ns=-\r\nc=IN IP4 {phone.address}\r\nt=0 0\r\n"
        f"m=image {phone.rtp_port} udptl t38\r\n"
    )


def udptl(at_s: float, seconds: int) -> list[Frame]:
    """A page to the callee: its packets are numbered from 0x8000 on, as RTP's version looks."""
    ends = (CALLER.address, CALLER.rtp_port), (CALLEE.address, CALLEE.rtp_port)
    return [
        udp_frame(
            START_NS + round((at_s + n / 50) * SECOND), *ends,
            struct.pack(">HBB", 0x8000 + n, 40, 0) + tone(CALLER, n)[:40],
        )
        for n in range(50 * seconds)
    ]  # fmt: skip


def faxed(media: list[Frame], ends_s: float) -> list[Frame]:
    """A call that talks for five seconds and then agrees upon T.38."""
    words, ms = Dialogue(CALLER, CALLEE, "fax"), SECOND // 1000
    voice = "".join(
        f"v=0\r\no=- 1 1 IN IP4 {p.address}\r\ns=-\r\nc=IN IP4 {p.address}\r\nt=0 0\r\n"
        f"m=audio {p.rtp_port} RTP/AVP 8\r\n|"
        for p in (CALLER, CALLEE)
    ).split("|")
    said = [
        words.request(START_NS, "INVITE", body=voice[0]),
        words.response(START_NS + 10 * ms, "200 OK", body=voice[1]),
        words.request(START_NS + 20 * ms, "ACK"),
        words.request(START_NS + 5000 * ms, "INVITE", 2, body=t38(CALLER)),
        words.response(START_NS + 5010 * ms, "200 OK", "2 INVITE", body=t38(CALLEE)),
        words.request(START_NS + 5020 * ms, "ACK", 2),
        words.request(START_NS + round(ends_s * SECOND), "BYE", 3),
        words.response(START_NS + round(ends_s * SECOND) + 5 * ms, "200 OK", "3 BYE"),
    ]
    return sorted([*said, *both(CALLER, CALLEE, 4.9, at=0.05), *media])


@pytest.mark.parametrize("seconds", [3, 40])
def test_who_goes_on_talking_amid_a_fax_under_another_ssrc_is_heard(seconds: int):
    frames = faxed(udptl(6, 40) + speech(NEW, CALLEE, seconds, at=7), ends_s=60)
    run = Run().part(frames).wait(40)
    (call,) = run.calls()
    assert [(one.party, one.ssrc, one.packets) for one in call.streams] == [
        ("caller", CALLER.ssrc, 245), ("callee", CALLEE.ssrc, 245),
        ("caller", NEW.ssrc, 50 * seconds),
    ]  # fmt: skip
    assert run.heard(call, 2) == b"".join(tone(NEW, n) for n in range(50 * seconds))
    assert call.flags == ["fax"]


def test_a_fax_alone_adds_no_sound(tmp_path):
    (call,) = Run().part(faxed(udptl(6, 40), ends_s=60)).wait(40).calls()
    assert [one.packets for one in call.streams] == [245, 245]


def test_what_proves_to_be_rtp_only_behind_the_end_is_kept_apart():
    frames = faxed(speech(NEW, CALLEE, 3, at=7), ends_s=11)
    with_signalling, without = Run().part(frames).wait(60).calls()
    assert [one.packets for one in with_signalling.streams] == [245, 245]
    assert [one.packets for one in without.streams] == [150]
