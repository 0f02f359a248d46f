"""Sockets between the daemons: every one is encrypted and both ends are known (CURVE).

A certificate is a CURVE key pair in a file of ZeroMQ's own format, with a `name` and a `role` as
metadata. storaged lets in whose public half lies in its clients folder, and the role decides what
may be asked: capture (ingest), replicator (ciphertext and receipts), operator (the rest). What
takes more than a role is a right, named in the public half there: no client can give it to itself.
Source: ZeroMQ RFC 26 (CurveZMQ), RFC 27 (ZAP). What is said over them: WIRE.md.
"""

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, get_args

import zmq
import zmq.auth

from spanvault.daemon import disks
from spanvault.daemon.config import credential

if TYPE_CHECKING:
    from zmq.auth.thread import ThreadAuthenticator

log = logging.getLogger(__name__)
Role = Literal["capture", "storaged", "replicator", "operator"]
ROLES: Final[tuple[str, ...]] = get_args(Role)
RIGHTS: Final = frozenset({"digits"})  # digits: what was dialled in a call
HEARTBEAT_MS: Final = 2000
_STRANGERS_TOLD: Final = 64  # each once: who is refused tries again every two seconds
STRANGER: Final = (
    "If it is one of yours, put the public half of its certificate into storaged's clients folder "
    "and restart storaged"
)


class Identity(NamedTuple):
    """Who is at the other end, as proved by its key, and what it may beyond its role."""

    role: Role
    name: str
    rights: frozenset[str] = frozenset()

    def __str__(self) -> str:
        return f"{self.role}/{self.name}"


class Certificate(NamedTuple):
    """A CURVE key pair; secret is None where only the public half is known. Z85 bytes."""

    public: bytes
    secret: bytes | None
    role: Role
    name: str
    rights: frozenset[str] = frozenset()


def make_certificate(folder: Path, role: Role, name: str, *rights: str) -> Path:
    """Write NAME.key (public) and NAME.key_secret (mode 0600) into folder; give the secret one.

    Raises FileExistsError rather than replace a secret.
    """
    # zmq.auth.create_certificates leaves the metadata out of the public file, and the secret one
    # readable for a moment: so we write its format ourselves.
    public, secret = (key.decode() for key in zmq.curve_keypair())
    metadata = f"metadata\n    role = {role}\n    name = {name}\n"
    if rights:
        metadata += f"    rights = {' '.join(rights)}\n"
    head = f'{metadata}curve\n    public-key = "{public}"\n'
    folder.mkdir(parents=True, exist_ok=True, mode=0o755)
    path = folder / f"{name}.key_secret"
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(head + f'    secret-key = "{secret}"\n')
    (folder / f"{name}.key").write_text(head)
    return path


def load_certificate(path: Path) -> Certificate:
    """Read NAME.key or NAME.key_secret, if systemd has it for us from there.

    Raises ValueError that names the file and the fault.
    """
    path = credential(path)
    try:
        text = path.read_text(encoding="utf-8")
        public, secret = zmq.auth.load_certificate(path)
    except OSError as error:
        hint = disks.remedy(error, path, "`spanvault init` makes certificates.")
        raise ValueError(f"{path}: no certificate can be read ({error.strerror}). {hint}") from None
    except (ValueError, IndexError) as error:  # a line of no key: pyzmq's reader trusts its files
        raise ValueError(f"{path}: not a certificate ({error})") from None
    fields = {
        key.strip(): value.strip().strip('"')
        for key, _, value in (line.partition("=") for line in text.splitlines() if "=" in line)
    }
    role = fields.get("role", "")
    if role not in ROLES:
        raise ValueError(f"{path}: role {role!r} is none of {', '.join(ROLES)}")
    rights = frozenset(fields.get("rights", "").replace(",", " ").split())
    if unknown := rights - RIGHTS:
        raise ValueError(
            f"{path}: {', '.join(sorted(unknown))} is no right; there is: {', '.join(RIGHTS)}"
        )
    name = fields.get("name", path.stem)
    return Certificate(public, secret, role, name, rights)  # type: ignore[arg-type]


class Clients:
    """The certificates of a folder: who may connect, and whose key it was. Thread-safe to ask."""

    def __init__(self, folder: Path) -> None:
        """Raises ValueError that names what cannot be read, and what to do."""
        self.strangers = 0  # connections that were refused
        self._told: set[bytes] = set()
        self._known = {
            certificate.public: Identity(certificate.role, certificate.name, certificate.rights)
            for certificate in map(load_certificate, _certificates(folder))
        }

    def names(self, role: Role) -> list[str]:
        """The names of all that have a role."""
        return sorted({one.name for one in self._known.values() if one.role == role})

    def callback(self, domain: str, key: bytes) -> bool:  # noqa: ARG002 - pyzmq's signature
        """ZAP's question: may this Z85 public key connect?"""
        if key in self._known:
            return True
        self.strangers += 1
        if key not in self._told and len(self._told) < _STRANGERS_TOLD:
            self._told.add(key)
            about = {"KEY": key.decode("ascii", "replace"), "HINT": STRANGER}
            log.warning("A key that is not among the clients' was refused", extra=about)
        return False

    def identity_of(self, frame: zmq.Frame) -> Identity:
        """Who sent this frame (receive with copy=False). Raises ValueError if it is not proved."""
        try:
            return self._known[str(frame.get("User-Id")).encode()]
        except (zmq.ZMQError, KeyError):
            raise ValueError("the sender did not prove who it is") from None


def _certificates(folder: Path) -> list[Path]:
    """Public halves. Path.glob() would take a folder that may not be read for an empty one."""
    try:
        return sorted(path for path in folder.iterdir() if path.suffix == ".key")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ValueError(
            f"{folder}: the clients' certificates cannot be read ({error.strerror}). "
            f"{disks.remedy(error, folder)}"
        ) from None


def authenticate(
    context: "zmq.Context[zmq.Socket[bytes]]", clients: Clients
) -> "ThreadAuthenticator":
    """Let only these clients in to the context's servers. stop() it before the context ends."""
    from zmq.auth.thread import ThreadAuthenticator  # brings asyncio, which no client needs

    authenticator = ThreadAuthenticator(context)
    authenticator.start()
    authenticator.configure_curve_callback(credentials_provider=clients)
    return authenticator


def listen(
    context: "zmq.Context[zmq.Socket[bytes]]", endpoint: str, certificate: Certificate
) -> "zmq.Socket[bytes]":
    """A ROUTER socket bound to endpoint as a CURVE server."""
    socket = context.socket(zmq.ROUTER)
    socket.curve_server = True
    socket.curve_publickey, socket.curve_secretkey = certificate.public, certificate.secret or b""
    socket.router_mandatory = True
    socket.linger = 0
    socket.set_hwm(64)
    socket.bind(endpoint)
    if endpoint.startswith("ipc:///"):
        # Whoever may enter the socket's folder may knock; CURVE decides who is let in.
        Path(endpoint.removeprefix("ipc://")).chmod(0o660)
    return socket


def connect(
    context: "zmq.Context[zmq.Socket[bytes]]",
    endpoint: str,
    certificate: Certificate,
    server: Certificate,
) -> "zmq.Socket[bytes]":
    """A DEALER socket to endpoint; it reconnects by itself and keeps nothing when closed."""
    socket = context.socket(zmq.DEALER)
    socket.curve_serverkey = server.public
    socket.curve_publickey, socket.curve_secretkey = certificate.public, certificate.secret or b""
    socket.linger = 0
    socket.set_hwm(64)
    socket.heartbeat_ivl, socket.heartbeat_timeout = HEARTBEAT_MS, 3 * HEARTBEAT_MS
    socket.reconnect_ivl, socket.reconnect_ivl_max = 50, 2000
    socket.connect(endpoint)
    return socket
