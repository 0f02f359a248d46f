"""What reaches storaged and the commands besides recordings: requests, memories, words.

A request is asked of a desk on a store with calls in it, by whatever role the first byte says. The
desk answers everything: that it stumbled is in its answer, and a fault here.
"""

import atexit
import os
import socket
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from typing import Any, Final

import msgspec

from spanvault import daemonlog, sandbox, slots, transport, wire
from spanvault import messages as m
from spanvault.audio import codecs, decoding
from spanvault.commands import times
from spanvault.daemon import rules
from spanvault.keys import keyfile, shares
from spanvault.transport import Identity
from tests.fuzz.choices import Choices, cut, joined
from tests.fuzz.folders import PLACE, folder
from tests.support.vault import START, Parts, call_id, make_call

KEY: Final = bytes(range(32))
WHO: Final = [Identity(role, "fuzz", rights) for role in ("operator", "replicator", "capture")
              for rights in (frozenset[str](), frozenset({"digits"}))]  # fmt: skip
RUNS_OF_A_STORE: Final = 100  # then a new one: what is asked changes it, erases its calls even
NOW: Final = datetime(2026, 11, 22, 12, 30, tzinfo=UTC)
ONE: Final = call_id(1)
AAC: Final = {
    "mpeg4-generic": "mode=AAC-hbr;config=1588",
    "mp4a-latm": "cpresent=0;config=40002620",
}
FOREIGN: Final = [
    m.Codec(name, row.rate or 16_000, parameters=AAC.get(name, ""))
    for name, row in codecs.DECODERS.items()
    if row.foreign
]


# --- requests -------------------------------------------------------------------------------------


class Asked:
    """A desk, anew after some runs."""

    def __init__(self, *, empty: bool) -> None:
        self._empty, self._runs, self._desk = empty, 0, None

    def desk(self) -> Any:
        from tests.support.desk import Counter  # pytest's, not of every process

        if self._desk is None or self._runs % RUNS_OF_A_STORE == 0:
            self.close()
            place = folder(f"requests-{self._empty}")
            (place / "unlock.key").write_text(keyfile.text_of(KEY))
            (place / "unlock.key").chmod(0o600)
            parts = Parts(place)
            self._desk = Counter(parts)
            if not self._empty:
                parts.vaults.add(parts.open_pool(POOL))
                parts.commit([(ONE, 1, 0)], [make_call(1)])
                parts.commit([(call_id(2), 1, 0)], [make_call(2, final=False)])
        self._runs += 1
        return self._desk

    def close(self) -> None:
        """Whatever was asked of it, a store takes a call."""
        if self._desk is not None:
            parts = self._desk.parts
            if not self._empty:
                parts.commit([(call_id(9), 1, 0)], [make_call(9)])
                with parts.index.reading() as view:
                    assert view.state(call_id(9)) is not None
            self._desk.access.close()
            for vault in parts.vaults:
                if vault.pool is not parts.pool:
                    vault.pool.close()
            parts.close()
            self._desk = None


ASKED: Final = (Asked(empty=False), Asked(empty=True))  # only an empty one takes imports
POOL: Final = "core"  # besides base


def request(data: bytes) -> None:
    """A request of some role, answered whatever it is. What it locked is unlocked again."""
    which, who = divmod((data or b"\0")[0], len(WHO))
    asked, bulk = wire.decode_request([wire.PROTOCOL, *cut(data[1:])])
    desk = ASKED[which % 2].desk().desk
    if isinstance(asked, m.OfferShare):  # of a locked pool only
        desk.answer(WHO[OPERATOR], m.Lock(asked.pool), [])
    reply = desk.answer(WHO[who], asked, list(bulk)).reply
    wire.encode(reply)
    assert "a fault of storaged itself" not in getattr(reply, "error", ""), repr(asked)
    if isinstance(asked, m.Lock | m.OfferShare):
        for name in ("base", POOL):
            desk.answer(WHO[OPERATOR], m.Unlock(name, KEY), [])


OPERATOR, REPLICATOR, EMPTY = 1, 2, len(WHO)  # the first byte of a request


def requests() -> list[bytes]:
    """One of each kind that needs no more than a call to be asked of."""
    public, share = keyfile.public_of(bytes(32)), shares.split(KEY, 2, 3)[0]
    asked_of: dict[int, list[tuple[m.Message, *tuple[bytes, ...]]]] = {
        OPERATOR: [
            (m.Status(),), (m.Get(ONE),), (m.Several([ONE, b"x"]),), (m.Fetch(ONE),),
            (m.Fetch(ONE, digits=True),), (m.Verify(ONE),), (m.Mend([ONE]),), (m.Erasures(),),
            (m.Search(number="+493012345678", since_ns=START, id_prefix="ab"),),
            (m.Search(cursor=bytes(24), longer_s=1.0, call_id="call-1@example.org"),),
            (m.Keys(),), (m.Lock("base"),), (m.Unlock("base", KEY, drill=True),),
            (m.Unlock(POOL, KEY),), (m.OfferShare("base", shares.write(share)),),
            (m.Rotate("base", "root"),), (m.Rotate(POOL, "ingest"),),
            (m.Recipients("base", KEY, [public]),), (m.Recipients(POOL, KEY, [], ["00" * 8]),),
            (m.Move([ONE], POOL, "it matters"),), (m.Erase([ONE], "asked"),),
            (m.Erase([ONE, call_id(2)], "asked", unfinished=True),), (m.Certify(bytes(16)),),
        ],
        REPLICATOR: [
            (m.ReadObject(ONE, 0, 100),), (m.Feed(0, target="a"),),
            (m.Health("a", "fine", {"x": 1}),), (m.Receipt(ONE, "a", 9, "00" * 32, START),),
            (m.Return("a", m.Change(3, "object", id=ONE, size=4)), b"part"),
        ],
        EMPTY + OPERATOR: [
            (m.Import("00" * 16, m.Change(1, "record", id=ONE, data=b"record")), b"part"),
            (m.Import("00" * 16, m.Change(2, "keys", name="page-000001.0", data=b"x")),),
            (m.Import("00" * 16, m.Change(3, "object", id=ONE, size=4)), b"part"),
        ],
    }  # fmt: skip
    return [
        bytes([who]) + joined(bytes(memoryview(each)) for each in wire.encode(*one)[1:])
        for who, some in asked_of.items()
        for one in some
    ]


# --- memory that a capture hands over -------------------------------------------------------------


def memories(data: bytes) -> None:
    """What a process that may enter the socket's folder can send, and slots a batch may name."""
    choose = Choices(data)
    place = folder("memory")
    theirs = slots.Memories(f"ipc://{place}/i")
    ours = slots.Slots(2 << 20)
    try:
        caller = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        with caller, suppress(OSError):
            caller.connect(f"{place}/i.memory")
            if choose.number(4):
                ours.hand_over(f"ipc://{place}/i", os.getuid())
            else:
                with (place / "file").open("wb") as file:
                    given = [file.fileno()] * choose.number(3)
                    socket.send_fds(caller, [choose.bytes(20)], given)
            for _ in range(4):
                name = ours.name if choose.number(4) else choose.bytes(20)
                where = (choose.number(1 << 16) - 9) * choose.of((1, 1 << 12, 1 << 46))
                sizes = [
                    choose.number(1 << 16) * choose.of((1, -1, 1 << 9, 1 << 40)) for _ in "123"
                ]
                slot = m.Slot(name, where, (sizes[0], sizes[1], sizes[2]))
                taken = theirs.take(
                    msgspec.msgpack.decode(msgspec.msgpack.encode(slot), type=m.Slot)
                )
                assert taken is None or [len(part) for part in taken] == sizes
    finally:
        ours.close()
        theirs.close()


# --- words that people and processes say ----------------------------------------------------------


def words(data: bytes) -> None:
    """Times, durations, schedules, rules, a certificate, a line of a daemon's log."""
    text = data.decode("utf-8", "replace")
    for parse in (lambda: times.parse_moment(text, NOW), lambda: times.parse_seconds(text),
                  lambda: rules.hours(text)):  # fmt: skip
        with suppress(ValueError):
            parse()
    daemonlog.parse(text).sentence  # noqa: B018 - a property that works
    list(daemonlog.parse_all(text.splitlines()))
    first, _, rest = text.partition("\n")
    with suppress(ValueError):
        rule = rules.Rule("base", number=[first], did=[rest], header={first: rest})
        rule.fits(make_call(1, caller=rest, headers={first.lower(): [rest]}, hosts=[rest]))
    with suppress(ValueError):
        rules.Rule("base", trunk=[first]).fits(make_call(1, hosts=[rest]))
    path = PLACE.with_name(PLACE.name + "-words")
    path.write_bytes(data)
    try:
        with suppress(ValueError):
            transport.load_certificate(path)
    finally:
        path.unlink()


def phrases() -> list[bytes]:
    certificate = folder("certificate")
    transport.make_certificate(certificate, "operator", "alice", "digits")
    said = "error: It failed FAULT='no such file' HINT=\"look\" NUMBER=3"
    return [
        b"2026-11-22T14:30", b"-90m", b"1.5h", b"mon-fri,sun 08:00-18:00", b"10.0.0.0/8\n10.1.2.3",
        b"+4930*\n+493012345678", b"x-*\nvalue", said.encode(),
        (certificate / "alice.key").read_bytes(),
    ]  # fmt: skip


# --- processes that may die -----------------------------------------------------------------------


def answers(data: bytes) -> None:
    """What a decoder that was taken over may answer."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.send(data[:4096])
        theirs.shutdown(socket.SHUT_WR)
        ours.settimeout(1)
        with suppress(ValueError, OSError):
            sandbox._receive(ours)
    with suppress(ValueError):
        decoding._taken_apart(data, 2)


def spoken() -> list[bytes]:
    from spanvault.audio.worker import Sounds

    told = msgspec.msgpack.encode(Sounds([2, -1], bytes(4)))
    return [told, len(told).to_bytes(4, "little") + told]


@cache
def _decoding() -> decoding.Decoding:
    made = decoding.Decoding(answer_s=10.0)
    atexit.register(made.close)
    return made


def decoded(data: bytes) -> None:
    """Payloads of a codec that FFmpeg decodes, in the process that may die of them: we do not."""
    choose, streams = Choices(data), _decoding()
    codec = choose.of(FOREIGN)
    if not codecs.decodable(codec):
        return
    payloads = [choose.bytes(400) for _ in range(1 + choose.number(6))]
    sounds = streams.decode(choose.number(4), codec, payloads)
    assert len(sounds) == len(payloads)
    streams._deaths.clear()
    streams.warnings.clear()


def payloads() -> Iterable[bytes]:
    """Two payloads of each codec, of sizes that some of them have."""
    for number in range(len(FOREIGN)):
        for size in (20, 24, 33, 38):
            part = (
                size.to_bytes(2, "big") + bytes([0x3C, 0xF0]) * (size // 2) + b"\x80" * (size % 2)
            )
            yield bytes([number, 0, 1]) + part * 2
