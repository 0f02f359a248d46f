"""AAC payloads to access units, and a decoder's configuration from SDP.

Two ways to carry it: mpeg4-generic in mode AAC-hbr or AAC-lbr, headers first; MP4A-LATM, lengths
first, configuration out of band. Interleaving, units in fragments and LATM that carries its own
configuration are refused. Sources: RFC 3640 §3.2, §3.3.6, §4.1; RFC 6416 §4.1, §7.3; ISO/IEC
14496-3 §1.7.3 (StreamMuxConfig).
"""

from collections.abc import Iterator

from spanvault.audio.amr import Bits

CONFIG_AT = 15  # bits of StreamMuxConfig before the first AudioSpecificConfig
MODES = {"aac-hbr": (13, 3, 3), "aac-lbr": (6, 2, 2)}  # bits of size, index, index delta


def generic(payload: bytes, mode: str) -> Iterator[bytes]:
    """The access units of an mpeg4-generic payload. Raises ValueError for one that is none."""
    size_bits, index_bits, delta_bits = MODES[mode]
    length = int.from_bytes(payload[:2], "big")  # of all headers, in bits
    start = 2 + (length + 7) // 8
    heads = Bits(payload[2:start])
    left, index, sizes = length, index_bits, []
    while left >= size_bits + index:
        sizes.append(heads.take(size_bits))
        if heads.take(index):
            raise ValueError("AAC: interleaved")
        left -= size_bits + index
        index = delta_bits
    if start + sum(sizes) != len(payload) or not sizes:
        raise ValueError(f"AAC: headers tell of {sum(sizes)} bytes, {len(payload) - start} follow")
    for size in sizes:
        yield payload[start : start + size]
        start += size


def latm(payload: bytes) -> Iterator[bytes]:
    """The access units of a LATM payload. Raises ValueError for one that is none."""
    at = 0
    while at < len(payload):
        length = 0
        while at < len(payload) and payload[at] == 255:
            length, at = length + 255, at + 1
        if at >= len(payload) or at + 1 + length + payload[at] > len(payload):
            raise ValueError("AAC: a unit is longer than its packet")
        length += payload[at]
        yield payload[at + 1 : at + 1 + length]
        at += 1 + length


def configuration(text: str, *, mux: bool) -> bytes:
    """AudioSpecificConfig from the hex of SDP's `config`. mux: it is a StreamMuxConfig around it.

    Raises ValueError for what is neither, or for more than one program, layer or frame at a time.
    """
    config = bytes.fromhex(text.strip('"'))
    if not mux:
        if len(config) < 2:
            raise ValueError("AAC: no configuration")
        return config
    bits = Bits(config)
    if bits.take(CONFIG_AT) != 1 << (CONFIG_AT - 2):
        raise ValueError("AAC: several programs, layers or frames at a time")
    rest = bits.left
    return (bits.take(rest) << -rest % 8).to_bytes((rest + 7) // 8, "big")
