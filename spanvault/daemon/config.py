"""One frozen struct a daemon, read from TOML. The commented samples in etc/ are the manual.

An unknown key, a wrong type or an impossible value is a ValueError that names file, line and
remedy; nothing is guessed. Who checks them: `spanvault check`.
"""

import os
import re
import socket
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

import msgspec
from msgspec import Meta

from spanvault.daemon.rules import POOLS, PoolName, Rule, check_header

Positive = Annotated[float, Meta(gt=0)]
Count = Annotated[int, Meta(ge=1)]


class CaptureConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """etc/capture.toml."""

    name: str = msgspec.field(default_factory=socket.gethostname)
    interface: str = ""  # may be given as --interface instead
    storaged: str = "ipc:///run/spanvault/ingest"
    certificate: Path = Path("/etc/spanvault/keys/capture.key_secret")
    storaged_certificate: Path = Path("/etc/spanvault/keys/storaged.key")
    state_dir: Path = Path("/var/lib/spanvault-capture")  # spool, ingest key
    runtime_dir: Path = Path("/run/spanvault-capture")  # call table, gone with a reboot
    ring_mb: Count = 256
    workers: Count = 1  # processes that share a port's flows
    outbox_mb: Count = 768  # kept in memory before batches go to the spool
    spool_mb: Count = 20_000  # kept on disk before recording stops
    silence_s: Positive = 300.0  # a call that lost its BYE ends after so long without RTP
    no_media_s: Positive = 300.0  # or, answered, without any
    hold_s: Positive = 1800.0  # or on hold
    bye_grace_s: Positive = 2.0  # RTP after BYE still belongs to the call
    unmatched_s: Positive = 30.0  # RTP without signalling is kept so long for a call to claim it
    unmatched_mb: Count = 64
    headers: list[str] = []  # SIP headers kept with the call, for the rules of pools
    orphans: Annotated[int, Meta(ge=0)] = 1000  # recordings without signalling at once; 0: none
    orphan_packets: Count = 100  # of a stream, in sequence, before it is one
    orphan_mbit: Positive = 100.0  # a second, of all of them
    orphan_minutes: Positive = 60.0  # then another one goes on
    orphan_days: Positive | None = 7.0  # then storaged erases them; None: as their pool says

    def __post_init__(self) -> None:
        """Raise ValueError for a header that no message could ever have."""
        for name in self.headers:
            if len(name) != 1:  # a compact form will do
                check_header(name)


class PoolConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One [pools.NAME] of etc/storaged.toml."""

    path: Path | None = None  # its own directory; by default STORE/pools/NAME
    unlock_key: Path | None = None  # tried at each start; the store's own is tried in any case
    recipients: list[Path] = []  # public keys that a new pool is sealed to; by default the store's
    keep_days: Count | None = None  # from a call's beginning; then it is erased; None: kept
    keep_at_least_days: Count | None = None  # until then nobody can erase it

    def __post_init__(self) -> None:
        """Raise ValueError for terms that contradict each other."""
        if self.keep_days and (self.keep_at_least_days or 0) > self.keep_days:
            raise ValueError(
                f"keep_at_least_days = {self.keep_at_least_days} is more than "
                f"keep_days = {self.keep_days}"
            )


class StoragedConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """etc/storaged.toml."""

    store: Path = Path("/var/lib/spanvault/store")
    ingest: str = "ipc:///run/spanvault/ingest"
    requests: str = "ipc:///run/spanvault/requests"
    certificate: Path = Path("/etc/spanvault/keys/storaged.key_secret")
    clients: Path = Path("/etc/spanvault/clients")
    unlock_key: Path = Path("/etc/spanvault/keys/unlock.key")  # or a systemd credential's path
    recovery_public: Path | None = (
        None  # a second key that opens the store; its half stays on paper
    )
    erasure_token: str = ""  # pkcs11:token=NAME?module-path=FILE: root keys live and die in it
    erasure_pin: Path = Path("/etc/spanvault/keys/erasure.pin")  # or a systemd credential's path
    commit_interval_s: Positive = 2.0
    pools: dict[PoolName, PoolConfig] = {}
    ingest_grace_days: Positive = 30.0  # a replaced ingest key opens spools for so long
    guest: bool = False  # other settings are the store's own, and name its captures
    scrub_days: Annotated[float, Meta(ge=0)] = 30.0  # each recording is checked so often; 0: never
    scrub_mb_s: Positive = 20.0  # read for that at most, a second
    closed_days: Positive = 14.0  # after its last word a capture may still send of a call
    reserve_percent: Annotated[float, Meta(ge=0, le=90)] = 5.0  # of a disk, for other captures
    default_pool: PoolName = "base"
    rules: list[Rule] = []

    def __post_init__(self) -> None:
        """Raise ValueError for a rule whose pool is not there."""
        for pool in (self.default_pool, *(rule.pool for rule in self.rules)):
            if pool != "base" and pool not in self.pools:
                raise ValueError(
                    f"pool '{pool}' has rules and no [pools.{pool}]: add that line, or calls could "
                    "not go there"
                )


class TargetConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One [[targets]] of etc/replicator.toml."""

    name: str
    kind: str  # "directory"
    path: Path


class ReplicatorConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """etc/replicator.toml."""

    storaged: str = "ipc:///run/spanvault/requests"
    certificate: Path = Path("/etc/spanvault/keys/replicator.key_secret")
    storaged_certificate: Path = Path("/etc/spanvault/keys/storaged.key")
    state_dir: Path = Path("/var/lib/spanvault-replicator")
    retry_s: Positive = 10.0
    targets: list[TargetConfig] = []


class OperatorConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """etc/spanvault.toml: how the `spanvault` command reaches storaged."""

    storaged: str = "ipc:///run/spanvault/requests"
    certificate: Path = Path("/etc/spanvault/keys/operator.key_secret")
    storaged_certificate: Path = Path("/etc/spanvault/keys/storaged.key")


FILES: Final[dict[str, type[msgspec.Struct]]] = {
    "capture.toml": CaptureConfig,
    "storaged.toml": StoragedConfig,
    "replicator.toml": ReplicatorConfig,
    "spanvault.toml": OperatorConfig,
}
FOLDER: Final = Path("/etc/spanvault")
_REMEDIES: Final = {
    r"enum value .*(`\$\.default_pool`|`\$\.rules\[\d+\]\.pool`|`key` in `\$\.pools`)": (
        f"Pools are {', '.join(POOLS)}"
    ),
    r"Expected `array`, got `(str|int|float)`": 'Write it in brackets: ["…"]',
    r"missing required field `pool` - at `\$\.rules": 'Say where its calls go: pool = "core"',
}

C = TypeVar("C", bound=msgspec.Struct)


def load(path: Path, kind: type[C]) -> C:
    """Read a daemon's settings. Raises ValueError: file, line, what is wrong, what to do."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error.reason})") from None
    try:
        return msgspec.convert(tomllib.loads(text), kind, dec_hook=_path)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: not TOML: {error}") from None
    except msgspec.ValidationError as error:
        raise ValueError(_explain(path, text, kind, str(error))) from None


def _path(kind: type[Any], value: Any) -> Any:
    """The one type of ours that TOML has not."""
    if kind is Path and isinstance(value, str) and value:
        return Path(value)
    raise ValueError(f"Expected a path, got {value!r}")


def credential(path: Path) -> Path:
    """Where systemd put this secret for us alone (LoadCredential=), or else the path itself."""
    given = Path(os.environ.get("CREDENTIALS_DIRECTORY", "/nonexistent")) / path.name
    return given if given.is_file() else path


def _explain(path: Path, text: str, kind: type[msgspec.Struct], fault: str) -> str:
    """Say where in the file msgspec's complaint belongs, and which keys there are."""
    unknown = re.search(r"unknown field `([^`]+)`", fault)
    place = re.search(r"`\$\.?([^`]*)`", fault)
    parts = re.findall(r"[^.\[\]]+", place[1]) if place else []
    keys = [part for part in parts if not part.isdigit() and part != "..."]
    line = _line_of(text, parts, unknown[1] if unknown else "") or _line_with(text, fault)
    where = f"{path}:{line}" if line else f"{path}"
    if unknown:
        owner = {"targets": TargetConfig, "rules": Rule, "pools": PoolConfig}.get(
            keys[0] if keys else "", kind
        )
        known = ", ".join(owner.__struct_fields__)
        return f"{where}: unknown key '{unknown[1]}'. Known here: {known}"
    return f"{where}: {fault}" + "".join(
        f". {remedy}" for sign, remedy in _REMEDIES.items() if re.search(sign, fault)
    )


def _line_with(text: str, fault: str) -> int | None:
    """The first line that holds the value that a complaint quotes."""
    quoted = re.search(r"'([^']+)'", fault)
    rows = enumerate(text.splitlines(), 1)
    return next((number for number, row in rows if quoted and f'"{quoted[1]}"' in row), None)


def _line_of(text: str, parts: Sequence[str], unknown: str) -> int | None:
    """The line of a place in the settings such as `rules`, `1`, `pool`; as near as there is one."""
    rows = list(enumerate(text.splitlines(), 1))
    keys = [part for part in parts if not part.isdigit() and part != "..."]
    if len(parts) > 1 and parts[1].isdigit():
        heads = [n for n, row in rows if re.match(rf"\s*\[\[\s*{re.escape(parts[0])}\s*\]\]", row)]
        if int(parts[1]) < len(heads):
            begin, end = heads[int(parts[1])], [*heads, len(rows) + 1][int(parts[1]) + 1]
            rows, keys = rows[begin - 1 : end - 1], keys[1:] or keys
    key = unknown or (keys[-1] if keys else "")
    pattern = rf"\s*(\[+[^]=]*)?[\"']?\b{re.escape(key)}\b[\"']?\s*[=\].]"
    found = (number for number, row in rows if key and re.match(pattern, row))
    return next(found, rows[0][0] if rows and len(parts) > 1 and parts[1].isdigit() else None)
