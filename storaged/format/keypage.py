"""The bytes of a store's key files: the root with its envelopes, and pages of 4,096 DEKs.

An object names its DEK and never carries it, so one DEK can be destroyed: its page is sealed anew
under a new page key, all page keys are wrapped anew under a new root key, and the old root goes.
FORMAT.md §5 specifies the bytes. Files, slots and order of writing: storaged.keys.keyring. Pure.
"""

import hashlib
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from spanvault.keys.keyfile import public_of
from spanvault.spool import SUITE

ROOT_MAGIC: Final = b"SVRROOT1"
PAGE_MAGIC: Final = b"SVRPAGE1"
SLOTS: Final = 4096  # DEKs of a page
DEK_BYTES: Final = 32

PAGE_KEY: Final = 1  # kinds of wrapped secret
INGEST_KEY: Final = 2
INDEX_KEY: Final = 3
SIGNING_KEY: Final = 4
INTAKE_KEY: Final = 5  # public: another pool's, by its tier

FILE: Final = 0  # slots: the envelopes hold the root key
TOKEN: Final = 1  # they hold a share of it, from which a token makes it

_HPKE_X25519: Final = 1  # kind of envelope
_ROOT: Final = struct.Struct("<8s16sIBBH")  # magic, store id, epoch, tier, slot, envelopes
_ENVELOPE: Final = struct.Struct("<BBH32s")  # kind, 0, length, public key
_COUNT: Final = struct.Struct("<I")
_SECRET: Final = struct.Struct("<BBHI12s48s")  # kind, 0, generation, number, nonce, ciphertext
_PAGE: Final = struct.Struct("<8sIHBB")  # magic, page, generation, tier, 0
_NONCE: Final = 12
_TAG: Final = 16
_DIGEST: Final = 32
PAGE_BYTES: Final = _PAGE.size + _NONCE + SLOTS * DEK_BYTES + _TAG  # of a page file
MOST_BYTES: Final = 64 << 20  # of any key file: the root of a million pages has 68 MB


OfShare = Callable[[bytes, int, int, bytes], bytes]  # store id, tier, epoch, share → root key


class Name(NamedTuple):
    """Which secret of the root: page keys are numbered, and each re-keying is a generation."""

    kind: int
    number: int
    generation: int = 0


class Root(NamedTuple):
    """The root file, opened. secrets: 32 bytes each."""

    store_id: bytes  # 16 bytes
    epoch: int
    tier: int
    root_key: bytes
    recipients: list[bytes]  # public keys it is sealed to, 32 bytes each
    secrets: dict[Name, bytes]
    slot: int = FILE  # where a part of the root key is kept


def serialize_root(
    store_id: bytes, epoch: int, tier: int, root_key: bytes, recipients: Sequence[bytes],
    secrets: Mapping[Name, bytes], nonces: Sequence[bytes], share: bytes | None = None,
) -> bytes:  # fmt: skip
    """The root file. recipients: X25519 public keys. nonces: one fresh one a secret, 12 bytes.

    share: of which a token makes the root key; the envelopes hold it in place of that.
    A (root_key, nonce) pair must never seal two different secrets.
    """
    slot, held = (FILE, root_key) if share is None else (TOKEN, share)
    parts = [_ROOT.pack(ROOT_MAGIC, store_id, epoch, tier, slot, len(recipients))]
    parts += [_envelope(parts[0], public_key, held) for public_key in recipients]
    return _with_secrets(parts, store_id, epoch, root_key, secrets, nonces)


def replace_secrets(
    data: bytes, root: Root, secrets: Mapping[Name, bytes], nonces: Sequence[bytes]
) -> bytes:
    """The root file with other secrets: same root key and envelopes, so no recipient is needed."""
    _, _, at = _split_envelopes(data)
    return _with_secrets([data[:at]], root.store_id, root.epoch, root.root_key, secrets, nonces)


def open_root(data: bytes, private_key: bytes, of_share: OfShare | None = None) -> Root:
    """Open the root file with one of the private keys it is sealed to (32 bytes).

    of_share: has a token make the root key. Raises LookupError if it is not sealed to this key,
    ValueError if the file is damaged, or its token is not at hand.
    """
    held = open_envelope(data, private_key)
    _, store_id, epoch, tier, slot, _ = _ROOT.unpack_from(data)
    if slot == FILE:
        root_key = held
    elif slot == TOKEN and of_share is not None:
        root_key = of_share(store_id, tier, epoch, held)
    else:
        raise ValueError(f"the root key is in slot {slot}, which is not at hand")
    envelopes, _, at = _split_envelopes(data)
    secrets = _open_secrets(data[at:-_DIGEST], store_id, epoch, root_key)
    return Root(store_id, epoch, tier, root_key, list(envelopes), secrets, slot)


def open_envelope(data: bytes, private_key: bytes) -> bytes:
    """What a root file's envelopes hold: the root key, or a share. Raises as open_root()."""
    check_root(data)
    envelopes, info, _ = _split_envelopes(data)
    wanted = public_of(private_key)
    if wanted not in envelopes:
        raise LookupError("the root key is not sealed to this key")
    try:
        key = X25519PrivateKey.from_private_bytes(private_key)
        return SUITE.decrypt(envelopes[wanted], key, info)
    except InvalidTag:
        raise ValueError("root envelope does not open") from None


def check_root(data: bytes) -> None:
    """Raise ValueError for a root file that is damaged, by what it says of itself."""
    if len(data) < _ROOT.size + _DIGEST:
        raise ValueError("root file cut")
    if data[:8] != ROOT_MAGIC:
        raise ValueError("not a root file: wrong magic")
    if hashlib.sha256(data[:-_DIGEST]).digest() != data[-_DIGEST:]:
        raise ValueError("root file damaged: its SHA-256 is another")


def recipients_of(data: bytes) -> list[bytes]:
    """The public keys that a root file says it is sealed to. Raises ValueError."""
    if len(data) < _ROOT.size + _DIGEST or data[:8] != ROOT_MAGIC:
        raise ValueError("not a root file")
    return list(_split_envelopes(data)[0])


def seal_page(
    page: int, generation: int, tier: int, store_id: bytes, deks: bytes, key: bytes, nonce: bytes
) -> bytes:
    """A page file. deks: SLOTS × 32 bytes, zeros where one was dropped. key is used once only."""
    head = _PAGE.pack(PAGE_MAGIC, page, generation, tier, 0)
    return head + nonce + AESGCM(key).encrypt(nonce, deks, head + store_id)


def open_page(data: bytes, page: int, generation: int, store_id: bytes, key: bytes) -> bytes:
    """The DEKs of a page. Raises ValueError if the file is damaged, or another page's."""
    if len(data) < PAGE_BYTES:
        raise ValueError(f"key page cut: {len(data):,} of {PAGE_BYTES:,} bytes")
    magic, number, age, _, _ = _PAGE.unpack_from(data)
    if magic != PAGE_MAGIC:
        raise ValueError("not a key page: wrong magic")
    if (number, age) != (page, generation):
        raise ValueError(f"key page {number}.{age} lies where {page}.{generation} belongs")
    body = data[_PAGE.size :]
    try:
        deks = AESGCM(key).decrypt(body[:_NONCE], body[_NONCE:], data[: _PAGE.size] + store_id)
    except InvalidTag:
        raise ValueError(f"key page {page} does not authenticate") from None
    if len(deks) != SLOTS * DEK_BYTES:  # whoever sealed more was none of ours
        raise ValueError(f"key page {page} holds {len(deks)} bytes of keys")
    return deks


def spans_of(slots: Iterable[int]) -> list[tuple[int, int]]:
    """Where the DEKs of these slots lie in a page file, and the tag, which tells something of them.

    (start, size) in bytes each. The rest is neighbours' DEKs, which live on in the page's next
    generation.
    """
    deks = _PAGE.size + _NONCE
    spans = [(deks + slot * DEK_BYTES, DEK_BYTES) for slot in sorted(slots)]
    return [*spans, (deks + SLOTS * DEK_BYTES, _TAG)]


def _envelope(head: bytes, public_key: bytes, root_key: bytes) -> bytes:
    sealed = SUITE.encrypt(
        root_key, X25519PublicKey.from_public_bytes(public_key), b"spanvault root/1" + head
    )
    return _ENVELOPE.pack(_HPKE_X25519, 0, len(sealed), public_key) + sealed


def _split_envelopes(data: bytes) -> tuple[dict[bytes, bytes], bytes, int]:
    """Envelopes by recipient, the info they were sealed with, and the offset behind them."""
    *_, count = _ROOT.unpack_from(data)
    envelopes, at = {}, _ROOT.size
    for _ in range(count):
        if len(data) - _DIGEST - at < _ENVELOPE.size:
            raise ValueError("root envelope cut")
        kind, _, length, recipient = _ENVELOPE.unpack_from(data, at)
        at += _ENVELOPE.size
        if length > len(data) - _DIGEST - at:
            raise ValueError("root envelope cut")
        if kind == _HPKE_X25519:
            envelopes[recipient] = data[at : at + length]
        at += length
    return envelopes, b"spanvault root/1" + data[: _ROOT.size], at


def _with_secrets(
    parts: list[bytes], store_id: bytes, epoch: int, root_key: bytes,
    secrets: Mapping[Name, bytes], nonces: Sequence[bytes],
) -> bytes:  # fmt: skip
    wrapper = AESGCM(root_key)
    parts = [*parts, _COUNT.pack(len(secrets))]
    for (name, secret), nonce in zip(secrets.items(), nonces, strict=True):
        sealed = wrapper.encrypt(nonce, secret, _secret_aad(store_id, epoch, name))
        parts.append(_SECRET.pack(name.kind, 0, name.generation, name.number, nonce, sealed))
    body = b"".join(parts)
    return body + hashlib.sha256(body).digest()


def _open_secrets(data: bytes, store_id: bytes, epoch: int, root_key: bytes) -> dict[Name, bytes]:
    if len(data) < _COUNT.size:
        raise ValueError("root secrets cut")
    (count,) = _COUNT.unpack_from(data)
    if len(data) != _COUNT.size + count * _SECRET.size:
        raise ValueError(f"root file names {count} secrets, and has {len(data)} bytes of them")
    wrapper, secrets = AESGCM(root_key), {}
    for kind, _, generation, number, nonce, sealed in _SECRET.iter_unpack(data[_COUNT.size :]):
        name = Name(kind, number, generation)
        try:
            secrets[name] = wrapper.decrypt(nonce, sealed, _secret_aad(store_id, epoch, name))
        except InvalidTag:
            raise ValueError(f"wrapped secret {tuple(name)} does not authenticate") from None
    return secrets


def _secret_aad(store_id: bytes, epoch: int, name: Name) -> bytes:
    return b"".join(
        (ROOT_MAGIC, store_id, struct.pack("<IBHI", epoch, name.kind, name.generation, name.number))
    )
