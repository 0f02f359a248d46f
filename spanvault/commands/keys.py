"""`spanvault keys`: who can open which pool, and the shares on paper that can.

Key files: spanvault.keys.keyfile, spanvault.keys.protected. Shares: spanvault.keys.shares. What
storaged does with it: WIRE.md §6. A private key is held here for as long as the command runs, and
is never printed.
"""

import contextlib
import getpass
import sys
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import typer
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from spanvault.commands.access import (
    CONFIG,
    ConfigOption,
    JsonOption,
    StoreOption,
    UnlockOption,
    reach,
)
from spanvault.commands.output import (
    USAGE,
    CommandFailed,
    complain,
    document,
    fields_table,
    people,
    say,
)
from spanvault.daemon.rules import POOLS
from spanvault.keys import keyfile, protected, shares
from spanvault.messages import Lock, PoolKeys, Recipients, Rotate, Unlock
from spanvault.spool import key_id

keys: Final = typer.Typer(
    name="keys", help="Who can open which pool: unlock, shares, drill, rotation.",
    no_args_is_help=True, add_completion=False,
)  # fmt: skip
PoolArgument = Annotated[str, typer.Argument(metavar="POOL", help="base, core or sensitive.")]
KeyOption = Annotated[
    Path | None,
    typer.Option("--key", metavar="FILE", help="A private key; asks for its passphrase or PIN."),
]
SharesOption = Annotated[
    bool, typer.Option("--shares", help="Ask for the shares of a key, one after the other.")
]


@keys.command()
def status(
    store: StoreOption = None, unlock_key: UnlockOption = None, config: ConfigOption = CONFIG,
    json: JsonOption = False,
) -> None:  # fmt: skip
    """Which pools are open, and to which keys each is sealed."""
    with reach(store, unlock_key, config) as client:
        reply = client.keys()
    for about in reply.pools:
        if json:
            document(_row(about))
        else:
            people().print(
                fields_table([(name, str(value)) for name, value in _row(about).items()])
            )


@keys.command()
def unlock(
    pool: PoolArgument, key: KeyOption = None, from_shares: SharesOption = False,
    config: ConfigOption = CONFIG,
) -> None:  # fmt: skip
    """Open a pool until storaged stops or it is locked; what waited for it becomes recordings."""
    with reach(None, None, config) as client:
        client.change_keys(Unlock(_pool(pool), _private_key(key, from_shares)))
    say(f"pool {pool} is open", "green")


@keys.command(name="share")
def share_(pool: PoolArgument, config: ConfigOption = CONFIG) -> None:
    """Give one share of a pool's key: each holder at his own terminal. The last one opens it."""
    with reach(None, None, config) as client:
        told = client.offer_share(_pool(pool), _ask_share("Share: "))
    if told.open:
        say(f"pool {pool} is open", "green")
    else:
        given = ", ".join(map(str, told.given))
        say(f"shares given: {given}; {told.needed} are needed, within an hour of the first")


@keys.command()
def lock(pool: PoolArgument, config: ConfigOption = CONFIG) -> None:
    """Let a pool's keys go: it records on, and nobody hears it until it is unlocked."""
    with reach(None, None, config) as client:
        client.change_keys(Lock(_pool(pool)))
    say(f"pool {pool} is locked")


@keys.command()
def drill(
    pool: PoolArgument, key: KeyOption = None, from_shares: SharesOption = False,
    store: StoreOption = None, unlock_key: UnlockOption = None, config: ConfigOption = CONFIG,
) -> None:  # fmt: skip
    """Prove that a key or the shares open a pool; nothing is changed."""
    private = _private_key(key, from_shares)
    with reach(store, unlock_key, config) as client:
        client.change_keys(Unlock(_pool(pool), private, drill=True))
    say(f"key {_name(private)} opens pool {pool}", "green")


@keys.command()
def rotate(
    what: Annotated[Literal["root", "ingest"], typer.Argument(help="Which key.")],
    pool: PoolArgument = "base", store: StoreOption = None, unlock_key: UnlockOption = None,
    config: ConfigOption = CONFIG,
) -> None:  # fmt: skip
    """A new root key, or a new ingest key; nothing stops meanwhile."""
    with reach(store, unlock_key, config) as client:
        client.change_keys(Rotate(_pool(pool), what))
    say(f"pool {pool} has a new {what} key", "green")


@keys.command()
def add(
    pool: PoolArgument,
    public: Annotated[Path, typer.Argument(metavar="PUB", help="The public half of the new key.")],
    key: KeyOption = None, from_shares: SharesOption = False, store: StoreOption = None,
    unlock_key: UnlockOption = None, config: ConfigOption = CONFIG,
) -> None:  # fmt: skip
    """Let another key open a pool. A key that opens it now must be shown."""
    half = keyfile.load_public(public)
    private = _private_key(key, from_shares)
    with reach(store, unlock_key, config) as client:
        client.change_keys(Recipients(_pool(pool), private, add=[half]))
    say(f"key {key_id(half)} opens pool {pool} from now on", "green")


@keys.command()
def remove(
    pool: PoolArgument,
    identity: Annotated[str, typer.Argument(metavar="ID", help="As `keys status` tells it.")],
    key: KeyOption = None, from_shares: SharesOption = False, store: StoreOption = None,
    unlock_key: UnlockOption = None, config: ConfigOption = CONFIG,
) -> None:  # fmt: skip
    """Shut a key out of a pool. A key that opens it now must be shown."""
    private = _private_key(key, from_shares)
    with reach(store, unlock_key, config) as client:
        client.change_keys(Recipients(_pool(pool), private, remove=[identity]))
    say(
        f"key {identity} opens pool {pool} no more; copies of the old root file may still be opened"
    )


@keys.command()
def make(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="The new private key's file.")],
    source: Annotated[
        Path | None, typer.Option("--from", metavar="FILE", help="Protect this key, make none.")
    ] = None,
    passphrase: Annotated[bool, typer.Option(help="A passphrase opens the file.")] = False,
    pkcs11: Annotated[
        str, typer.Option(metavar="URI", help="An RSA key in a token opens the file.")
    ] = "",
    from_shares: SharesOption = False,
) -> None:
    """A key for a pool in a file of its own, plain or protected; its public half in FILE.pub."""
    if source and from_shares:
        raise CommandFailed("which key?", "Give --from FILE, or --shares.", USAGE)
    _refuse_existing(path.with_suffix(".pub"))
    private = _private_key(source, from_shares) if source or from_shares else _new_key()
    if passphrase:
        text = protected.with_passphrase(private, _new_passphrase())
    elif pkcs11:
        text = protected.with_token(private, pkcs11)
    else:
        text = keyfile.text_of(private)
    protected.write(path, text)
    public = _write_public(path.with_suffix(".pub"), private)
    say(f"{path}: key {_name(private)}. Its public half: {public}", "green")


@keys.command(name="shares")
def shares_(
    threshold: Annotated[int, typer.Option(help="How many shares are needed.")],
    count: Annotated[int, typer.Option(help="How many there are.")],
    public: Annotated[
        Path, typer.Option("--pub", metavar="FILE", help="Where the public half goes.")
    ],
    key: KeyOption = None,
) -> None:
    """Shares of a key for paper, to stdout; without --key of a new one, which lies in no file."""
    _refuse_existing(public)
    private = protected.load(key, _ask) if key else _new_key()
    made = shares.split(private, threshold, count)
    # First: a public half whose shares nobody has would seal a pool for ever.
    sys.stdout.write("\n".join(shares.write(share) for share in made))
    sys.stdout.flush()
    _write_public(public, private)
    say(f"Give each share to another person. The key's public half: {public}", "green")
    say("Prove that they work once they are on paper: spanvault keys drill POOL --shares")


def _refuse_existing(public: Path) -> None:
    """A public half that is replaced would seal to another key than somebody keeps."""
    if public.exists():
        raise CommandFailed(f"{public} exists", "Name another file, or remove it.")


def _write_public(public: Path, private: bytes) -> Path:
    keyfile.write_public(public, keyfile.public_of(private))
    public.chmod(0o644)
    return public


def _row(about: PoolKeys) -> dict[str, Any]:
    return {
        "pool": about.pool, "state": "locked" if about.locked else "open",
        "sealed_to": ", ".join(about.recipients), "epoch": about.epoch,
        "ingest_keys": about.ingest_keys, "waiting": about.waiting,
        "grade": about.grade, "to_go": "; ".join(about.to_go),
    }  # fmt: skip


def _pool(name: str) -> str:
    if name not in POOLS:
        raise CommandFailed(f"'{name}' is no pool", f"Pools are {', '.join(POOLS)}.", USAGE)
    return name


def _private_key(path: Path | None, from_shares: bool) -> bytes:
    if (path is None) != from_shares:
        raise CommandFailed("which key?", "Give --key FILE, or --shares.", USAGE)
    return _joined() if path is None else protected.load(path, _ask)


def _joined() -> bytes:
    """The key whose shares are typed. Raises CommandFailed at the end of input."""
    found: dict[int, shares.Share] = {}
    while not found or len(found) < next(iter(found.values())).threshold:
        text = _ask_share(f"Share ({len(found)} so far): ")
        try:
            share = shares.parse(text)
            known = next(iter(found.values()), share)
            if share[:3] != known[:3]:
                raise ValueError(
                    f"this share is of set {share.set_name} ({share.threshold} of {share.total}), "
                    f"what was typed before is of {known.set_name} ({known.threshold} of "
                    f"{known.total}). If that was the wrong one: Ctrl-C, and begin anew"
                )
        except ValueError as error:
            complain(str(error))
            continue
        found[share.number] = share
        say(f"share {share.number} of {share.total}, {share.threshold} are needed")
    try:
        return shares.combine(found.values())
    except ValueError as error:
        hint = "One of them is not what was printed: begin anew."
        raise CommandFailed(str(error), hint) from None


def _ask_share(question: str) -> str:
    """A share as it stands on paper: on lines of its own, or all on one."""
    text = _ask(question)
    while shares.goes_on(text):
        text += "\n" + _ask("its next line: " if text.strip() else question)
    return text


def _ask(question: str) -> str:
    """What is typed, unseen; from a pipe, a line of it."""
    with contextlib.suppress(EOFError):
        if sys.stdin.isatty():
            return getpass.getpass(question)
        if line := sys.stdin.readline():
            return line.rstrip("\r\n")
    raise CommandFailed(f"{question.strip()} nothing came", "Type it, or pipe it in.", USAGE)


def _new_passphrase() -> str:
    first = _ask("New passphrase: ")
    if len(first) < 12:
        raise CommandFailed("that passphrase is too short", "12 characters or more.", USAGE)
    if sys.stdin.isatty() and _ask("Once more: ") != first:
        raise CommandFailed("the two passphrases differ", "", USAGE)
    return first


def _new_key() -> bytes:
    return X25519PrivateKey.generate().private_bytes_raw()


def _name(private_key: bytes) -> str:
    return key_id(keyfile.public_of(private_key))
