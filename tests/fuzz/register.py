"""Which modules read what comes from outside, which target feeds each, and the targets' layers.

A module reads if it takes bytes or text apart: READS, found by its syntax. test_register.py holds
this table to the code, so that a new reader finds its target, or says why it has none.
"""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final

PACKAGES: Final = ("capture", "spanvault", "storaged", "replicator")
# Methods and functions by which bytes and text are taken apart.
READS: Final = frozenset({
    "unpack", "unpack_from", "iter_unpack", "frombuffer", "from_bytes", "fromhex", "b64decode",
    "loads", "fromisoformat", "XMLPullParser", "literal_eval", "GzipFile", "recv_fds", "recv_into",
    "fullmatch", "finditer", "Decoder",
})  # fmt: skip

# What does not take apart what comes from outside by itself, and why.
OURS: Final = {
    "capture.ear": "hands blocks on", "capture.recorder": "hands blocks on",
    "capture.explain.tshark": "tshark's output: rows of numbers",
    "capture.media.engine": "orders of our own call table",
    "capture.sources.interface": "the kernel's answers",
    "capture.sources.ring": "the kernel's ring; its frames are as those of files",
    "capture.worker": "our own processes, between themselves",
    "spanvault.client": "replies of storaged, which wire decodes",
    "spanvault.commands.access": "an argument in hex", "spanvault.commands.erasing": "the same",
    "spanvault.commands.auditing": "output of our own process",
    "spanvault.commands.explain": "the same", "spanvault.commands.reindex": "the same",
    "spanvault.commands.replay": "the same", "spanvault.commands.restore": "the same",
    "spanvault.audio.foreign": "runs in a process that may die, where target decoded feeds it",
    "spanvault.audio.worker": "the same",
    "spanvault.video.worker": "runs in such a process, where target filmed feeds it",
    "spanvault.video.film": "answers of that process, by sandbox",
    "storaged.keys.pagefiles": "names of files; what is in them, keypage opens",
    "storaged.integrity.reindexing": "names of files; what is in them, rebuilding reads",
    "storaged.index.search": "a key of its own table",
    "storaged.integrity.mending": "rows that damage wrote",
    "storaged.integrity.recordcheck": "records whose tag fits, by format.record",
    "storaged.integrity.recordmending": "names and rows that damage wrote",
    "storaged.integrity.scrub": "a row of its own", "storaged.index.damage": "rows of its own",
    "storaged.requests.witness": "heads that we signed",
    "storaged.requests.receipts": "rows that index keeps",
    "storaged.index.relabelling": "rows of its own",
    "storaged.index.toldkeys": "rows of its own", "storaged.pools.remembered": "a file of its own",
    "storaged.index.ingestkeys": "rows of its own; what captures say, erasing.holding reads",
    "storaged.index.ledgerheads": "rows of its own", "storaged.index.writing": "the same",
    "storaged.integrity.ledgermending": "a row of its own",
    "storaged.integrity.labelcheck": "rows of its own; test_rowcheck.py flips their bits",
    "storaged.integrity.rowsweep": "the same", "storaged.erasing.relisting": "a token of ours",
    "storaged.integrity.statemending": "names that damage wrote; trailers that authenticate",
    "replicator.__main__": "heads that bundles brought", "replicator.source": "replies, by wire",
    "replicator.follower": "changes that bundle or wire decoded",
}  # fmt: skip
# Module to the targets whose seeds reach it.
PARSERS: Final[dict[str, tuple[str, ...]]] = {
    "capture.calls.calltable": ("table",),
    "capture.calls.control": ("dialogs",),
    "capture.calls.identity": ("calls", "swollen"),
    "capture.packets.fabrics": ("peel",),
    "capture.packets.framing": ("frames", "swollen"),
    "capture.packets.linktypes": ("peel",),
    "capture.packets.opaque": ("frames",),
    "capture.packets.rtpheader": ("capture",),
    "capture.packets.triage": ("frames",),
    "capture.signalling.salvage": ("sip",),
    "capture.signalling.siptls": ("tls", "calls", "swollen"),
    "capture.packets.datagrams": ("frames", "capture"),
    "capture.packets.decode": ("frames", "capture"),
    "capture.packets.hep": ("hep",),
    "capture.packets.inet": ("frames",),
    "capture.packets.network": ("frames", "capture"),
    "capture.packets.offload": ("offload",),
    "capture.packets.slowpath": ("frames",),
    "capture.packets.tcp": ("frames",),
    "capture.packets.tls": ("tls", "frames"),
    "capture.packets.tunnels": ("peel",),
    "capture.packets.unwrap": ("frames",),
    "capture.packets.websocket": ("websocket",),
    "capture.packets.wireless": ("peel",),
    "capture.signalling.sdp": ("sdp", "dialogs"),
    "capture.signalling.sip": ("sip", "calls", "dialogs"),
    "capture.signalling.siprec": ("siprec",),
    "capture.sources.files": ("capture", "packed"),
    "capture.sources.pcap": ("capture", "edited"),
    "capture.sources.pcapng": ("capture",),
    "spanvault.audio.aac": ("payloads",),
    "spanvault.audio.amr": ("payloads",),
    "spanvault.audio.codecs": ("sdp", "payloads"),
    "spanvault.audio.decoding": ("decoded", "answers"),
    "spanvault.audio.framing": ("payloads",),
    "spanvault.audio.mpeg": ("payloads",),
    "spanvault.audio.plain": ("payloads",),
    "spanvault.audio.red": ("red",),
    "spanvault.certificate": ("notes",),
    "spanvault.media.chunk": ("media", "store"),
    "spanvault.commands.times": ("words",),
    "spanvault.daemon.config": ("config",),
    "spanvault.daemonlog": ("words",),
    "spanvault.media.digits": ("digits",),
    "spanvault.keys.keyfile": ("keyfile",),
    "spanvault.logchain": ("log",),
    "spanvault.keys.protected": ("keyfile",),
    "spanvault.media.rtcp": ("rtcp",),
    "spanvault.media.rtp": ("whole",),
    "spanvault.daemon.rules": ("words",),
    "spanvault.sandbox": ("answers", "decoded"),
    "spanvault.media.sdes": ("sdes",),
    "spanvault.keys.shares": ("keyfile",),
    "spanvault.slots": ("memories",),
    "spanvault.spool": ("store", "intake"),
    "spanvault.media.srtp": ("srtp",),
    "spanvault.media.srtcp": ("srtcp",),
    "spanvault.keys.token": ("keyfile",),  # its URI; the rest talks to a token, our own
    "spanvault.transport": ("words",),  # certificates; the rest is sockets, whose bytes are CURVE's
    "spanvault.video.bits": ("pictures",),
    "spanvault.video.nal": ("pictures",),
    "spanvault.video.orientation": ("pictures",),
    "spanvault.video.vp8": ("pictures",),
    "spanvault.video.vp9": ("pictures",),
    "spanvault.wire": ("wire", "requests"),
    "storaged.index.binding": ("store",),
    "storaged.requests.custody": ("requests",),
    "storaged.erasing.eraser": ("requests",),
    "storaged.erasing.moving": ("requests",),
    "storaged.keys.sharing": ("requests",),
    "storaged.index.erasures": ("rows",),
    "storaged.recordings.gathering": ("store",),
    "storaged.index.environment": ("rows",),
    "storaged.index.rows": ("rows",),
    "storaged.index.view": ("rows",),
    "storaged.pools.intake": ("intake",),
    "storaged.keys.intakekeys": ("intake",),
    "storaged.format.keypage": ("root", "page"),
    "storaged.index.labels": ("rows",),
    "storaged.pools.layout": ("log",),
    "storaged.format.ledger": ("ledger",),
    "storaged.pools.ledgerfile": ("ledger", "reindex"),
    "storaged.integrity.rebuilding": ("reindex",),
    "storaged.format.record": ("rows",),
    "storaged.integrity.restoring": ("requests", "restored"),
    "storaged.format.sealing": ("object", "sealed"),
    "storaged.format.walk": ("object", "sealed"),
    "replicator.bundle": ("bundle",),
    "replicator.inventory": ("bundle",),
    "replicator.layout": ("bundle",),
    "replicator.replica": ("replica",),
    "replicator.state": ("notes",),
    "replicator.targets.base": ("replica",),
}

# What the targets are of. Fuzzing time is counted by layer: `tests.fuzz --tell`.
LAYERS: Final[dict[str, tuple[str, ...]]] = {
    "packets": ("capture", "frames", "peel", "offload", "hep", "packed", "tls"),
    "signalling": (
        "sip", "sdp", "siprec", "websocket", "sdes", "calls", "swollen", "dialogs", "table",
    ),
    "media": (
        "rtcp", "srtcp", "srtp", "red", "digits", "payloads", "pictures", "media", "whole",
        "places", "decoded", "filmed",
    ),
    "storage": (
        "object", "sealed", "root", "page", "keyfile", "rows", "log", "store", "bundle", "notes",
        "ledger", "reindex", "replica", "restored",
    ),
    "asked": (
        "wire", "config", "requests", "memories", "intake", "words", "answers", "explain",
    ),
    "mutated captures": ("edited", "product"),  # and `capture`, which counts above
}  # fmt: skip
OUTSIDE: Final = "product"  # no target of atheris: tests.fuzz.product


def readers(repository: Path) -> Iterator[str]:
    """The modules that read, dotted."""
    for package in PACKAGES:
        for path in sorted((repository / package).rglob("*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            if any(_reads(node) for node in ast.walk(tree)):
                yield ".".join(path.relative_to(repository).with_suffix("").parts)


def _reads(node: ast.AST) -> bool:
    """Whether it is one of READS, a pattern, msgspec's decoding, a view of bytes in the network's
    order, or a function that says that it parses."""
    if isinstance(node, ast.FunctionDef):
        return node.name.split("_")[0] in ("parse", "decode", "dissect", "peel")
    if isinstance(node, ast.Name):
        return node.id in READS
    if isinstance(node, ast.Call):
        return (
            any(
                isinstance(each, ast.Constant) and str(each.value).startswith(">")
                for each in node.args
            )
            and getattr(node.func, "attr", "") == "view"
        )
    if not isinstance(node, ast.Attribute):
        return False
    if node.attr == "compile":
        return isinstance(node.value, ast.Name) and node.value.id == "re"
    if node.attr == "decode":
        return isinstance(node.value, ast.Attribute) and node.value.attr in ("msgpack", "json")
    return node.attr in READS
