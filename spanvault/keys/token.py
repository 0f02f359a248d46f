"""Wrap and unwrap a key with an RSA key pair that lives in a PKCS#11 token (HSM, smart card); keep
secrets there that can be destroyed.

The token's private key never leaves it: who copies our key file has nothing without the token and
its PIN. RSA-OAEP with SHA-1 and MGF1-SHA-1, the one form that every token offers; its security does
not rest on collisions. Source: RFC 8017 §7.1, PKCS#11 v2.40, RFC 7512 (URIs).
"""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any, Final, NamedTuple
from urllib.parse import quote, unquote

import pkcs11
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import load_der_public_key
from pkcs11 import MGF, Attribute, KeyType, Mechanism, MechanismFlag, ObjectClass, TokenFlag
from pkcs11.util.rsa import encode_rsa_public_key

_OAEP: Final = (Mechanism.SHA_1, MGF.SHA1, None)
_SECRET: Final = {Attribute.CLASS: ObjectClass.SECRET_KEY}
_MIN_BITS: Final = 2048
EXAMPLE: Final = "pkcs11:token=NAME;object=KEY?module-path=/usr/lib/softhsm/libsofthsm2.so"


# PINs that a token has refused. A token locks itself after some wrong ones, and a daemon that tries
# one again and again, for each pool and at each rotation, would have it done within a minute.
_refused: set[tuple[str, str]] = set()
_turn: Final = threading.Lock()  # one session at a time: a library that begins anew ends the others


class Place(NamedTuple):
    """Where a key pair is: a token's label, the object's, and the library that reaches it."""

    token: str
    object: str
    module: str


def parse_uri(uri: str, *, with_object: bool = True) -> Place:
    """Read a pkcs11: URI. with_object: False where it names the token alone. Raises ValueError."""
    scheme, _, rest = uri.partition(":")
    path, _, query = rest.partition("?")
    pairs = [*path.split(";"), *query.split("&")]
    fields = {name: unquote(value) for name, _, value in (pair.partition("=") for pair in pairs)}
    try:
        if scheme != "pkcs11":
            raise KeyError(scheme)
        if not with_object:
            fields["object"] = ""
        return Place(fields["token"], fields["object"], fields["module-path"])
    except KeyError:
        raise ValueError(f"'{uri}' names no key in a token. Write it as {EXAMPLE}") from None


def canonical(uri: str) -> str:
    """The URI without white space, as a key file holds it. Raises ValueError."""
    place = parse_uri(uri)
    path = f"token={quote(place.token)};object={quote(place.object)}"
    return f"pkcs11:{path}?module-path={quote(place.module)}"


def wrap(uri: str, secret: bytes) -> bytes:
    """Encrypt a secret to the token's public key; no PIN is needed. Raises ValueError."""
    place = parse_uri(uri)
    try:
        with _turn, _token(place).open() as session:
            key = session.get_key(ObjectClass.PUBLIC_KEY, KeyType.RSA, label=place.object)
            public = load_der_public_key(encode_rsa_public_key(key))
    except pkcs11.PKCS11Error as error:
        raise _explained(place, error) from None
    assert isinstance(public, rsa.RSAPublicKey)
    if public.key_size < _MIN_BITS:
        raise ValueError(f"the token's key has {public.key_size} bits, {_MIN_BITS} are wanted")
    oaep = padding.OAEP(padding.MGF1(hashes.SHA1()), hashes.SHA1(), None)  # noqa: S303 - see above
    return public.encrypt(secret, oaep)


def unwrap(uri: str, wrapped: bytes, pin: str) -> bytes:
    """Have the token decrypt a secret of 32 bytes. Raises ValueError."""
    place = parse_uri(uri)
    try:
        with _opened(place, pin) as session:
            key = session.get_key(ObjectClass.PRIVATE_KEY, KeyType.RSA, label=place.object)
            secret = bytes(
                key.decrypt(wrapped, mechanism=Mechanism.RSA_PKCS_OAEP, mechanism_param=_OAEP)
            )
    except pkcs11.PKCS11Error as error:
        raise _explained(place, error) from None
    if len(secret) != 32:
        raise ValueError("what the token decrypted is no key")
    return secret


def make_secret(place: Place, pin: str, label: str) -> None:
    """Have the token make a secret of 32 bytes that never leaves it. Raises ValueError.

    One of the same label is destroyed first.
    """
    with _session(place, pin) as session:
        for old in session.get_objects({Attribute.LABEL: label, **_SECRET}):
            old.destroy()
        session.generate_key(
            KeyType.GENERIC_SECRET, 256, label=label, store=True,
            capabilities=MechanismFlag.SIGN,
            template={Attribute.SENSITIVE: True, Attribute.EXTRACTABLE: False},
        )  # fmt: skip


def hmac_sha256(place: Place, pin: str, label: str, data: bytes) -> bytes:
    """HMAC-SHA256 of data under a secret of the token, 32 bytes. Raises ValueError."""
    with _session(place, pin) as session:
        found = list(session.get_objects({Attribute.LABEL: label, **_SECRET}))
        if len(found) != 1:
            raise ValueError(f"token '{place.token}' has {len(found)} secrets '{label}', not one")
        return bytes(found[0].sign(data, mechanism=Mechanism.SHA256_HMAC))


def destroy_secrets(place: Place, pin: str, prefix: str, kept: str) -> int:
    """Destroy the secrets whose labels begin so, but for one; gives how many. Raises ValueError."""
    with _session(place, pin) as session:
        gone = [
            one for one in session.get_objects(_SECRET)
            if one.label.startswith(prefix) and one.label != kept
        ]  # fmt: skip
        for one in gone:
            one.destroy()
        return len(gone)


@contextlib.contextmanager
def _session(place: Place, pin: str) -> Iterator[Any]:
    """A session that may make and destroy objects. Raises ValueError."""
    try:
        with _opened(place, pin, writing=True) as session:
            yield session
    except pkcs11.PKCS11Error as error:
        raise _explained(place, error) from None


@contextlib.contextmanager
def _opened(place: Place, pin: str, *, writing: bool = False) -> Iterator[Any]:
    """A session of a user. Raises ValueError for a PIN that the token has refused before."""
    with _turn:
        if (place.token, pin) in _refused:
            raise ValueError(f"token '{place.token}': the PIN is wrong, and is not tried again")
        token = _token(place)
        if TokenFlag.USER_PIN_FINAL_TRY in token.flags:  # restarts, too, must not use that up
            raise ValueError(
                f"token '{place.token}': one more wrong PIN locks it, so none is tried here. Log "
                "in once with the right one by the token's own tool, then correct the PIN here"
            )
        try:
            session = token.open(rw=writing, user_pin=pin)
        except (pkcs11.PinIncorrect, pkcs11.PinLenRange):
            _refused.add((place.token, pin))
            raise
        with session:
            yield session


def _token(place: Place) -> Any:
    """The token, its library begun anew where it does not find it. Raises ValueError.

    Libraries look for tokens as they begin, and some take none that was away meanwhile.
    """
    try:
        library = pkcs11.lib(place.module)
    except (RuntimeError, OSError) as error:
        raise ValueError(f"{place.module} cannot be loaded ({error})") from None
    try:
        with contextlib.suppress(pkcs11.PKCS11Error):
            return library.get_token(token_label=place.token)
        library.reinitialize()
        return library.get_token(token_label=place.token)
    except pkcs11.NoSuchToken:
        raise ValueError(f"no token '{place.token}' is there: is it plugged in?") from None
    except pkcs11.PKCS11Error as error:
        fault = type(error).__name__
        raise ValueError(f"token '{place.token}': {fault}: is it plugged in?") from None


def _explained(place: Place, error: Exception) -> ValueError:
    """What went wrong, for people: PKCS#11 has only codes."""
    known = {
        "PinIncorrect": "the PIN is wrong", "PinLocked": "the PIN is locked after wrong tries",
        "PinLenRange": "the PIN is wrong", "NoSuchKey": f"it has no RSA key '{place.object}'",
        "FunctionNotSupported": "it makes no secret of its own, as a TPM's module does not: it can "
        "carry out no erasures",
        "EncryptedDataInvalid": "the key file was not made for this key",
    }  # fmt: skip
    name = type(error).__name__
    return ValueError(f"token '{place.token}': {known.get(name, name)}")
