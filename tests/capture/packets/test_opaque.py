"""What encrypts whole packets is counted by its name, and costs nobody else anything."""

import pytest

from capture.packets.decode import Decoder
from tests.support.frames import block, ethernet, ipv4, ipv6, rtp, udp

SIX = bytes(15) + b"\1", bytes(15) + b"\2"
SEALED = bytes.fromhex("c0ffee01 00000001") + bytes(80)


@pytest.mark.parametrize(
    ("name", "frame"),
    [
        ("opaque_ipsec", ethernet(ipv4(SEALED, protocol=50))),
        ("opaque_ipsec", ethernet(ipv6(SEALED, *SIX, following=50), 0x86DD)),
        ("opaque_ipsec", ethernet(ipv4(SEALED, protocol=50), tags=[(0x8100, 7)])),
        ("opaque_ipsec", ethernet(ipv4(udp(SEALED, 4500, 4500)))),
        ("opaque_macsec", ethernet(b"\x2c\0" + SEALED, 0x88E5)),  # E and C: encrypted
        ("opaque_wireguard", ethernet(ipv4(udp(b"\4\0\0\0" + SEALED, 51820, 51820)))),
        ("opaque_capwap", ethernet(ipv4(udp(b"\1\0\0\0" + SEALED, 5247, 5247)))),
    ],
)
def test_what_is_sealed_is_counted_by_name(name: str, frame: bytes) -> None:
    decoder = Decoder()
    decoded = decoder.decode(block([frame] * 3))
    counted = {key: count for key, count in decoder.counters.items() if key.startswith("opaque")}
    assert counted == {name: 3}
    assert decoded.refused.count == 0


@pytest.mark.parametrize("port", [4500, 5247, 51820, 1701, 4790, 6635])
def test_rtp_that_uses_such_a_port_is_rtp(port: int) -> None:
    decoder = Decoder()
    decoded = decoder.decode(block([ethernet(ipv4(udp(rtp(), port, port)))] * 3))
    assert len(decoded.packets.ssrc) == 3
    assert not any(key.startswith("opaque") for key in decoder.counters)


@pytest.mark.parametrize(
    "payload", [b"\0" * 4 + b"an IKE message", b"\xff", b""], ids=["IKE", "keep-alive", "nothing"]
)
def test_what_agrees_on_keys_is_no_packet_of_ipsec(payload: bytes) -> None:
    decoder = Decoder()
    decoder.decode(block([ethernet(ipv4(udp(payload, 4500, 4500)))]))
    assert decoder.counters["opaque_ipsec"] == 0
