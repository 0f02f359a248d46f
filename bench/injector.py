"""Frames of many G.711 streams, as fast as a kernel can make them: a sending loop is too slow.

`bpf(BPF_PROG_TEST_RUN)` with live frames runs a small XDP program over recycled pages; what it
passes goes on as if the interface's driver had just received it. The program counts the frames and
writes stream, sequence number, timestamp and payload of each from that number alone, so the truth
of every stream follows from how many were made. Prints one JSON line: frames made, seconds, CPU.
Sources: Linux Documentation/bpf/bpf_prog_run.rst, include/uapi/linux/bpf.h; RFC 3550 §5.1.

    python bench/injector.py INTERFACE [--streams 10500] [--rate 525000] [--seconds 10]
                             [--impaired] [--drop]
"""

import argparse
import ctypes
import json
import os
import resource
import socket
import struct
import sys
import time
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

PACKETS_A_SECOND: Final = 50  # of one stream
SAMPLES: Final = 160  # and bytes of payload of one packet
PAYLOAD_TYPE: Final = 8
PHONES: Final = 10 << 24 | 1 << 16  # call c: phone 10.1.c/256.c%256
PHONE_PORT: Final = 10_000
GATEWAY: Final = 10 << 24 | 2 << 16 | 1
GATEWAY_PORT: Final = 16_384  # and two more for each call

SYS_BPF: Final = 321  # x86-64
MAP_CREATE, MAP_LOOKUP, MAP_UPDATE, PROG_LOAD, PROG_TEST_RUN = 0, 1, 2, 5, 10
MAP_TYPE_ARRAY, PROG_TYPE_XDP, LIVE_FRAMES = 2, 6, 2
XDP_DROP, XDP_PASS = 1, 2
BATCH: Final = 64  # frames the kernel hands on at once
LONGEST_S: Final = 0.05  # of frames in one go: one that was held up must not flood the ring
PAUSE_S: Final = 0.004  # each go costs the kernel a set-up

# Where things lie in a frame: Ethernet 14, IPv4 20, UDP 8, RTP 12 bytes.
SOURCE, DESTINATION, SOURCE_PORT, DESTINATION_PORT = 26, 30, 34, 36
SEQUENCE, TIMESTAMP, SSRC, PAYLOAD = 44, 46, 50, 54
SIZE: Final = PAYLOAD + SAMPLES
# Impaired: of every hundred packets of a stream, one is lost and the next one comes twice, and two
# change places.
CYCLE, LOST, SWAPPED = 100, 50, 70


class Ends(NamedTuple):
    """Where the two streams of a call run between."""

    phone: str
    phone_port: int
    gateway: str
    gateway_port: int


def ends(call: int) -> Ends:
    """The addresses of a call's media. Stream 2·call comes from its phone, the next goes there."""
    phone, gateway = (socket.inet_ntoa(struct.pack("!I", a)) for a in (PHONES + call, GATEWAY))
    return Ends(phone, PHONE_PORT, gateway, GATEWAY_PORT + 2 * call)


def numbers(count: int, impaired: bool) -> NDArray[np.int64]:
    """The sequence numbers of a stream's first count packets, in the order they are sent."""
    number = np.arange(count)
    if impaired:
        turn = number % CYCLE
        number += (turn == LOST) | (turn == SWAPPED)
        number -= turn == SWAPPED + 1
    return number


def payloads(stream: NDArray[np.int64], number: NDArray[np.int64]) -> NDArray[np.uint8]:
    """What packets hold. stream, number: int64[n]. Returns uint8[n, SAMPLES]."""
    found = np.tile(np.frombuffer(_filling(), np.uint8), (len(stream), 1))
    found[:, :4] = stream.astype(">u4").view(np.uint8).reshape(-1, 4)
    found[:, 4:8] = number.astype(">u4").view(np.uint8).reshape(-1, 4)
    return found


def _filling() -> bytes:
    return bytes(range(SAMPLES))


def _frame() -> bytes:
    """What no packet differs in."""
    head = bytes((2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0))
    ip = struct.pack("!BBHHHBBHII", 0x45, 0, SIZE - 14, 0, 0, 64, 17, 0, 0, 0)
    udp = struct.pack("!HHHH", 0, 0, SIZE - 34, 0)
    return head + ip + udp + struct.pack("!BBHII", 0x80, PAYLOAD_TYPE, 0, 0, 0) + _filling()


# --- the program, in eBPF's own instructions ---------------------------------------------------

R0, R1, R2, R3, R4, R5, R6, R7, R8, R10 = 0, 1, 2, 3, 4, 5, 6, 7, 8, 10
COPY, SET, ADD, SUBTRACT, MULTIPLY, SHIFT, AND = 0xBF, 0xB7, 0x07, 0x17, 0x27, 0x77, 0x57
ADD_REGISTER, DIVIDE_REGISTER, REMAINDER_REGISTER, REMAINDER = 0x0F, 0x3F, 0x9F, 0x97
LOAD4, LOAD8, STORE2, STORE4, STORE8, STORE4_CONSTANT = 0x61, 0x79, 0x6B, 0x63, 0x7B, 0x62
BIG_ENDIAN, LOAD_MAP, CALL, EXIT = 0xDC, 0x18, 0x85, 0x95
JUMP, IF_EQUAL, IF_NOT_EQUAL, IF_REGISTER_ABOVE = 0x05, 0x15, 0x55, 0x2D
CONTEXT, FRAME, FRAME_END, SCRATCH = R6, R7, R8, R1


class Program:
    """Instructions, and jumps to places that are only named."""

    def __init__(self) -> None:
        self._code: list[tuple[int, int, int, int | str, int]] = []
        self._places: dict[str, int] = {}

    def add(self, code: int, to: int = 0, of: int = 0, at: int | str = 0, value: int = 0) -> None:
        """One instruction. at: an offset, or the name of a place to jump to."""
        self._code.append((code, to, of, at, value))

    def place(self, name: str) -> None:
        """What comes next is called so."""
        self._places[name] = len(self._code)

    def put(self, at: int, bits: int, register: int, value: int = 0) -> None:
        """Write register + value, most significant byte first, into the frame."""
        self.add(COPY, SCRATCH, register)
        self.add(ADD, SCRATCH, value=value)
        self.add(BIG_ENDIAN, SCRATCH, value=bits)
        self.add(STORE2 if bits == 16 else STORE4, FRAME, SCRATCH, at)

    def encode(self) -> bytes:
        """As the kernel takes it."""
        return b"".join(
            struct.pack(
                "<BBhi", code, to | of << 4,
                at if isinstance(at, int) else self._places[at] - number - 1, value,
            )
            for number, (code, to, of, at, value) in enumerate(self._code)
        )  # fmt: skip


def _program(state: int, impaired: bool, action: int) -> bytes:
    """state: descriptor of the array whose one entry is (frames made, streams), two u64."""
    stream, number, call = R4, R3, R2
    program = Program()
    program.add(COPY, CONTEXT, R1)
    program.add(LOAD4, FRAME, CONTEXT, 0)
    program.add(LOAD4, FRAME_END, CONTEXT, 4)
    program.add(COPY, SCRATCH, FRAME)
    program.add(ADD, SCRATCH, value=SIZE)
    program.add(IF_REGISTER_ABOVE, SCRATCH, FRAME_END, "drop")
    program.add(STORE4_CONSTANT, R10, at=-4)
    program.add(LOAD_MAP, R1, 1, value=state)
    program.add(0)
    program.add(COPY, R2, R10)
    program.add(ADD, R2, value=-4)
    program.add(CALL, value=1)  # bpf_map_lookup_elem
    program.add(IF_EQUAL, R0, at="drop")
    program.add(LOAD8, number, R0, 0)
    program.add(COPY, SCRATCH, number)
    program.add(ADD, SCRATCH, value=1)
    program.add(STORE8, R0, SCRATCH, 0)
    program.add(LOAD8, R5, R0, 8)
    program.add(COPY, stream, number)
    program.add(REMAINDER_REGISTER, stream, R5)
    program.add(DIVIDE_REGISTER, number, R5)
    if impaired:
        _impair(program, number)
    _rtp(program, stream, number)
    program.add(COPY, call, stream)
    program.add(SHIFT, call, value=1)
    program.add(COPY, R5, call)
    program.add(ADD_REGISTER, R5, call)
    program.add(AND, stream, value=1)
    program.add(IF_NOT_EQUAL, stream, at="back", value=0)
    _addresses(program, call, (SOURCE, SOURCE_PORT), (DESTINATION, DESTINATION_PORT))
    program.add(JUMP, at="done")
    program.place("back")
    _addresses(program, call, (DESTINATION, DESTINATION_PORT), (SOURCE, SOURCE_PORT))
    program.place("done")
    program.add(SET, R0, value=action)
    program.add(EXIT)
    program.place("drop")
    program.add(SET, R0, value=XDP_DROP)
    program.add(EXIT)
    return program.encode()


def _impair(program: Program, number: int) -> None:
    """As numbers() says."""
    program.add(COPY, R5, number)
    program.add(REMAINDER, R5, value=CYCLE)
    program.add(IF_EQUAL, R5, at="later", value=LOST)
    program.add(IF_EQUAL, R5, at="later", value=SWAPPED)
    program.add(IF_NOT_EQUAL, R5, at="as it is", value=SWAPPED + 1)
    program.add(SUBTRACT, number, value=1)
    program.add(JUMP, at="as it is")
    program.place("later")
    program.add(ADD, number, value=1)
    program.place("as it is")


def _rtp(program: Program, stream: int, number: int) -> None:
    program.put(SEQUENCE, 16, number)
    program.put(SSRC, 32, stream, 1)
    program.put(PAYLOAD, 32, stream)
    program.put(PAYLOAD + 4, 32, number)
    program.add(MULTIPLY, number, value=SAMPLES)
    program.put(TIMESTAMP, 32, number)


def _addresses(
    program: Program, call: int, phone: tuple[int, int], gateway: tuple[int, int]
) -> None:
    """R5 holds twice the call."""
    program.put(phone[0], 32, call, PHONES)
    program.add(SET, R0)
    program.put(phone[1], 16, R0, PHONE_PORT)
    program.put(gateway[0], 32, R0, GATEWAY)
    program.put(gateway[1], 16, R5, GATEWAY_PORT)


# --- the kernel -----------------------------------------------------------------------------------

_libc = ctypes.CDLL(None, use_errno=True)


def _bpf(command: int, attributes: bytes) -> int:
    """Raises OSError."""
    buffer = ctypes.create_string_buffer(attributes, max(len(attributes), 128))
    result: int = _libc.syscall(SYS_BPF, command, buffer, len(attributes))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


class Injector:
    """Frames into one interface."""

    def __init__(self, interface: str, streams: int, impaired: bool, action: int) -> None:
        self._state = _bpf(MAP_CREATE, struct.pack("<5I", MAP_TYPE_ARRAY, 4, 16, 1, 0))
        self._key = ctypes.create_string_buffer(4)
        self._value = ctypes.create_string_buffer(struct.pack("<QQ", 0, streams), 16)
        self._entry(MAP_UPDATE)
        code = _program(self._state, impaired, action)
        instructions = ctypes.create_string_buffer(code, len(code))
        license_, log = ctypes.create_string_buffer(b"GPL"), ctypes.create_string_buffer(1 << 16)
        addresses = ctypes.addressof(instructions), ctypes.addressof(license_)
        try:
            self._program = _bpf(PROG_LOAD, struct.pack(
                "<IIQQIIQII", PROG_TYPE_XDP, len(code) // 8, *addresses, 1, len(log),
                ctypes.addressof(log), 0, 0,
            ))  # fmt: skip
        except OSError as error:
            said = log.value.decode().strip().splitlines()[-3:]
            raise OSError(error.errno, f"the kernel refused the program: {said}") from None
        frame = _frame()
        self._frame = ctypes.create_string_buffer(frame, len(frame))
        context = struct.pack("<6I", 0, SIZE, 0, socket.if_nametoindex(interface), 0, 0)
        self._context = ctypes.create_string_buffer(context, len(context))

    def make(self, frames: int) -> None:
        """So many more frames. Raises OSError."""
        _bpf(PROG_TEST_RUN, struct.pack(
            "<IIIIQQIIIIQQIIII", self._program, 0, SIZE, 0, ctypes.addressof(self._frame), 0,
            frames, 0, 24, 0, ctypes.addressof(self._context), 0, LIVE_FRAMES, 0, BATCH, 0,
        ))  # fmt: skip

    @property
    def made(self) -> int:
        """Frames the program has counted."""
        self._entry(MAP_LOOKUP)
        return int(struct.unpack_from("<Q", self._value)[0])

    def _entry(self, command: int) -> None:
        key, value = ctypes.addressof(self._key), ctypes.addressof(self._value)
        _bpf(command, struct.pack("<IIQQQ", self._state, 0, key, value, 0))


def run(injector: Injector, rate: float, seconds: float) -> float:
    """Make frames at a rate. Returns the seconds it took."""
    began = time.monotonic()
    made, total = 0, int(rate * seconds)
    while made < total:
        due = min(int((time.monotonic() - began) * rate), total) - made
        if due <= 0:
            time.sleep(PAUSE_S)
            continue
        frames = min(due, int(rate * LONGEST_S) + 1)
        injector.make(frames)
        made += frames
    return time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("interface")
    parser.add_argument("--streams", type=int, default=10_500)
    parser.add_argument("--rate", type=float, default=525_000)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--impaired", action="store_true")
    parser.add_argument("--drop", action="store_true", help="make them, and hand none on")
    given = parser.parse_args()
    action = XDP_DROP if given.drop else XDP_PASS
    injector = Injector(given.interface, given.streams, given.impaired, action)
    before_s = _cpu_s()
    seconds = run(injector, given.rate, given.seconds)
    cpu_s = _cpu_s() - before_s
    print(json.dumps({"frames": injector.made, "seconds": seconds, "cpu_s": cpu_s}))


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    sys.exit(main())
