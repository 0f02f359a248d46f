"""Encryption around whole packets: what a mirror shows of a VPN, where no call can be heard.

Frames of it are counted by what encrypts them, so that an administrator whose calls are missing
gets an answer; what each count means and what can be done, capture.explain.remedies says.
Sources: RFC 4303 (ESP), RFC 3948 (ESP in UDP), IEEE 802.1AE (MACsec), RFC 5415 §4.2 (CAPWAP under
DTLS), the WireGuard protocol §5.4. Tunnels in the clear: capture.packets.tunnels.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from capture.packets.columns import Bytes
from capture.packets.unread import Told

IPV4, IPV6 = 0x0800, 0x86DD
ESP: Final = 50
MACSEC: Final = 0x88E5
MACSEC_SEALED: Final = 0x0C  # of the SecTAG's first byte: encrypted, changed; else only signed
ESP_PORT, CAPWAP_PORT, WIREGUARD_PORT = 4500, 5247, 51820
CAPWAP_DTLS, WIREGUARD_DATA = 0x01000000, 0x04000000  # how payloads begin
NAMES: Final = {
    "opaque_ipsec": "IPsec", "opaque_macsec": "MACsec", "opaque_wireguard": "WireGuard",
    "opaque_capwap": "CAPWAP under DTLS",
}  # fmt: skip
PORTS: Final = (ESP_PORT, CAPWAP_PORT, WIREGUARD_PORT)


def count_frames(
    kind: NDArray[Any], header: NDArray[Any], counters: Counter[str], each: int = 1
) -> NDArray[np.bool_]:
    """Of frames that are not plain UDP, which are encrypted: bool[n].

    kind: [n], EtherTypes.  header: HEADER[n].  each: how many frames one of them stands for.
    """
    esp = (kind == IPV4) & (header["protocol"] == ESP)
    esp |= (kind == IPV6) & (header["next"] == ESP)
    _add(counters, "opaque_ipsec", esp, each)
    macsec: NDArray[np.bool_] = kind == MACSEC
    if macsec.any():
        macsec &= header["control"] & MACSEC_SEALED != 0
    _add(counters, "opaque_macsec", macsec)
    found: NDArray[np.bool_] = esp | macsec
    return found


def count_datagrams(
    port: NDArray[Any], first: Bytes, length: NDArray[np.int64], counters: Counter[str]
) -> NDArray[np.bool_]:
    """Of datagrams to PORTS or others, which are encrypted: bool[n].

    port, length: [n].  first: uint8[n, 4], the beginning of each payload.
    """
    word = np.where(length >= first.shape[1], first.view(">u4").reshape(-1), 0)
    # What begins as RTP does is taken for RTP: an ESP's number is chosen at random.
    esp = (port == ESP_PORT) & (word != 0) & (first[:, 0] >> 6 != 2)
    capwap = (port == CAPWAP_PORT) & (word == CAPWAP_DTLS)
    wireguard = (port == WIREGUARD_PORT) & (word == WIREGUARD_DATA)
    _add(counters, "opaque_ipsec", esp)
    _add(counters, "opaque_capwap", capwap)
    _add(counters, "opaque_wireguard", wireguard)
    found: NDArray[np.bool_] = esp | capwap | wireguard
    return found


def told(counters: Mapping[str, int]) -> list[Told]:
    """What was counted, in words."""
    return [Told(what, counters[name]) for name, what in NAMES.items() if counters.get(name)]


def _add(counters: Counter[str], name: str, which: NDArray[np.bool_], each: int = 1) -> None:
    if count := int(np.count_nonzero(which)):
        counters[name] += count * each
