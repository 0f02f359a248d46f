"""Somebody who has the image of a medium and an unlock key, and tries everything that they open.

Carves from every block, used or freed: root files (all that the unlock key opens, of any age), key
pages (each under every page key found), object segments, sealed records, spooled batches. Every
DEK that a slot ever had, in any page that opens, is tried on whatever names that slot.
"""

import struct
from collections.abc import Iterator

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from spanvault import spool
from spanvault.messages import Call
from storaged.format import keypage, record, walk
from storaged.format.keypage import DEK_BYTES, INDEX_KEY, INGEST_KEY, PAGE_KEY, SLOTS
from storaged.format.sealing import DATA, HEADER_BYTES, MAGIC, Header, SegmentKey
from storaged.index import labels
from storaged.index.rows import time_key

BLOCK = 1024  # the smallest that mkfs.ext4 chooses
PAGE_HEAD = struct.Struct("<8sIHBB")
NODE = struct.Struct("<HHHH")  # of LMDB: size low, size high, flags, key size
MOST_CALLS = 32  # of one number on a day that are looked for
SEARCH_ROW = NODE.pack(24, 0, 0, 24)  # the head of one in LMDB
LARGEST_ROOT = 1 << 16


class Examiner:
    """One image. secrets: every DEK, page key and ingest key that could be had."""

    def __init__(self, image: bytes, unlock: bytes) -> None:
        self._image = image
        self.roots = [
            root for at in self._blocks(keypage.ROOT_MAGIC) if (root := self._root(at, unlock))
        ]
        assert self.roots, "not even the current root was found"
        self._deks: dict[int, set[bytes]] = {}
        for at in self._blocks(keypage.PAGE_MAGIC):
            self._page(at)
        opened = {dek for deks in self._deks.values() for dek in deks}
        self.secrets = opened | {one for root in self.roots for one in root.secrets.values()}

    def objects(self, recording_id: bytes) -> list[bytes]:
        """The plaintext of every frame of a recording that opens, from wherever it lies."""
        found = []
        for at in self._everywhere(MAGIC):
            try:
                header = Header.parse(self._image[at : at + HEADER_BYTES])
            except ValueError:
                continue
            if header.recording_id == recording_id:
                for dek in self._candidates(header.key_id):
                    found += self._frames(at, header, dek)
        return found

    def records(self, call_id: bytes) -> list[bytes]:
        """Every revision of a call's record that opens, LMDB's free pages included."""
        places = self._everywhere(call_id + record.MAGIC)
        return self._records(
            call_id, [(at, NODE.unpack_from(self._image, at - 8)) for at in places]
        )

    def noted(self, call_id: bytes) -> list[bytes]:
        """The same of ledgers: an entry begins with SVLE and the length of its body."""
        places = self._everywhere(call_id + record.MAGIC)
        return self._records(call_id, [
            (at, NODE.unpack_from(self._image, at - 8)) for at in places
            if self._image[at - 12 : at - 8] == b"SVLE"
        ])  # fmt: skip

    def search_rows(self, call: Call) -> list[tuple[bytes, bytes]]:
        """Key and value of every search row that its numbers or Call-IDs lead to.

        Whatever lies like such a row, in used pages, freed ones and gaps, under any key that its
        slot ever had; and what lies before the call's own time key.
        """
        index_keys = {
            secret for root in self.roots for name, secret in root.secrets.items()
            if name.kind == INDEX_KEY
        }  # fmt: skip
        tokens = {
            int.from_bytes(one, "big") for key in index_keys for one in record.tokens(key, call)
        }
        places = {at + NODE.size for at in self._everywhere(SEARCH_ROW)}
        places |= {at - 24 for at in self._everywhere(time_key(call.started_ns, call.id))}
        return [
            (self._image[at : at + 24], self._image[at + 24 : at + 48])
            for at in sorted(places)
            if any(
                (block - token) % (1 << 128) < MOST_CALLS
                for block in self._blocks_of(self._image[at : at + 24])
                for token in tokens
            )
        ]  # fmt: skip

    def _blocks_of(self, key: bytes) -> Iterator[int]:
        """What a search row's label is under each key that its slot had."""
        for dek in self._candidates(int.from_bytes(key[1:8], "big")):
            cipher = Cipher(algorithms.AES(labels.label_key(dek)), modes.ECB())
            yield int.from_bytes(cipher.decryptor().update(key[8:]), "big")

    def _records(self, call_id: bytes, places: list[tuple[int, tuple[int, ...]]]) -> list[bytes]:
        """Those that open of what lies at some places, each with its length's two halves."""
        found = []
        for at, (low, high, *_) in places:
            sealed = self._image[at + 16 : at + 16 + (low | high << 16)]
            try:
                candidates = self._candidates(record.parse_head(sealed).key_id)
            except ValueError:
                continue
            for dek in candidates:
                try:
                    call = record.open_call(call_id, sealed, dek)
                except ValueError:
                    continue
                found.append(record.encode_call(call))
        return found

    def batches(self, size: int) -> list[bytes]:
        """Every spooled batch of a known size that opens, at the beginning of any block."""
        keys = {
            secret for root in self.roots for name, secret in root.secrets.items()
            if name.kind == INGEST_KEY
        }  # fmt: skip
        found = []
        for at in range(0, len(self._image) - size, BLOCK):
            sealed = self._image[at : at + size]
            if sealed.count(0) > size // 2:
                continue  # no ciphertext looks like that
            for key in keys:
                try:
                    found.append(spool.open_plain(sealed, key))
                except ValueError:
                    continue
        return found

    def _candidates(self, key_id: int) -> set[bytes]:
        """Every key that may have been in a slot."""
        return self._deks.get(key_id, set())

    def _root(self, at: int, unlock: bytes) -> keypage.Root | None:
        """A root file, whatever its length: the digest behind it tells."""
        *_, envelopes = struct.unpack_from("<8s16sIBBH", self._image, at)
        end = at + 32
        try:
            for _ in range(envelopes):
                end += 36 + struct.unpack_from("<BBH", self._image, end)[2]
            end += 4 + 68 * struct.unpack_from("<I", self._image, end)[0] + 32
            return (
                keypage.open_root(self._image[at:end], unlock) if end - at < LARGEST_ROOT else None
            )
        except (ValueError, LookupError, struct.error):
            return None

    def _page(self, at: int) -> None:
        _, page, *_ = PAGE_HEAD.unpack_from(self._image, at)
        sealed = self._image[at : at + 16 + 12 + SLOTS * DEK_BYTES + 16]
        for root in self.roots:
            for name, key in root.secrets.items():
                if name.kind != PAGE_KEY:
                    continue
                try:
                    deks = AESGCM(key).decrypt(
                        sealed[16:28], sealed[28:], sealed[:16] + root.store_id
                    )
                except Exception:
                    continue
                for slot in range(SLOTS):
                    dek = deks[slot * DEK_BYTES : (slot + 1) * DEK_BYTES]
                    if any(dek):
                        self._deks.setdefault(page * SLOTS + slot, set()).add(dek)

    def _frames(self, at: int, header: Header, dek: bytes) -> list[bytes]:
        try:
            key = SegmentKey.open(header, dek)
        except ValueError:
            return []
        data = self._image[at : at + (1 << 20)]
        found = []
        for place in walk.walk(data).places:
            if place.segment or place.flag != DATA:
                continue
            try:
                found.append(
                    key.open_frame(place.sequence, place.flag, data[place.start : place.end])
                )
            except ValueError:
                continue
        return found

    def _blocks(self, magic: bytes) -> Iterator[int]:
        """Where a file may begin that has this magic."""
        return (at for at in self._everywhere(magic) if at % BLOCK == 0)

    def _everywhere(self, what: bytes) -> Iterator[int]:
        at = self._image.find(what)
        while at >= 0:
            yield at
            at = self._image.find(what, at + 1)
