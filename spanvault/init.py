"""Make what a new installation lacks in /etc/spanvault; what is there is never replaced.

    keys/NAME.key_secret, NAME.key   the four CURVE certificates (spanvault.transport)
    keys/unlock.key, recovery.key    the two private keys that open a store, each with its .pub
    clients/NAME.key                 who may connect to storaged
    *.toml                           the commented samples of etc/

Secrets belong to root, mode 0600: systemd hands each daemon its own (LoadCredential= in systemd/).
It runs before every start, so it must not bring back what an administrator took away: a client
that was shut out, or a private key that now lies in a safe.
"""

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Final

from spanvault.daemon.config import FILES
from spanvault.keys import keyfile
from spanvault.transport import Role, make_certificate

CERTIFICATES: Final[tuple[Role, ...]] = ("storaged", "capture", "replicator", "operator")
KEEP: Final = {
    "unlock": "storaged needs it at every start. Keep a copy off this machine: without it and "
    "without the recovery key, no recording can ever be heard again.",
    "recovery": "Print it, put it in a safe, and delete the file here: it opens every recording, "
    "and is needed only when this machine or the unlock key is lost.",
}


def initialise(folder: Path, target: Path | None = None) -> list[str]:
    """Make what is missing in folder. target: a folder for the first replica.

    Returns a line for each thing made, for the administrator. Raises OSError as the disk does,
    ValueError for a key file that is none.
    """
    keys, clients = folder / "keys", folder / "clients"
    for each in (folder, keys, clients):
        each.mkdir(parents=True, exist_ok=True, mode=0o755)
        each.chmod(0o755)  # whatever the umask: public halves are for everyone to read
    said = [line for role in CERTIFICATES for line in _certificate(keys, clients, role)]
    said += [line for name in KEEP for line in _key_pair(keys, name)]
    said += [line for name in FILES for line in _settings(folder, name)]
    return said + (_target(folder / "replicator.toml", target) if target else [])


def samples() -> Path:
    """The folder of commented settings: the repository's, or what the wheel brought."""
    here = Path(__file__).parents[1] / "etc"
    return here if (here / "capture.toml").is_file() else Path(sys.prefix, "share/spanvault/etc")


def _certificate(keys: Path, clients: Path, role: Role) -> list[str]:
    """A CURVE certificate, and its owner's admission to storaged."""
    secret = keys / f"{role}.key_secret"
    if secret.exists():
        return []
    with tempfile.TemporaryDirectory(dir=keys, prefix=".new-") as new:
        made = make_certificate(Path(new), role, role)
        public = made.with_suffix(".key")
        public.chmod(0o644)
        if role != "storaged":
            shutil.copy(public, clients / public.name)
        public.rename(keys / public.name)
        made.rename(secret)  # last: whoever finds it, finds the rest
    return [f"{secret}: made, the {role}'s certificate"]


def _key_pair(keys: Path, name: str) -> list[str]:
    """A private key for the store. Its .pub says that it was made, wherever the key is now."""
    private, public = keys / f"{name}.key", keys / f"{name}.pub"
    if public.exists():
        return []
    existed = private.exists()  # an interrupted run, or a key brought from elsewhere
    keyfile.clear_unfinished(private)
    half = keyfile.public_of(keyfile.load(private)) if existed else keyfile.create_private(private)
    keyfile.write_public(public, half)
    public.chmod(0o644)
    return [] if existed else [f"{private}: made. {KEEP[name]}"]


def _settings(folder: Path, name: str) -> list[str]:
    """A sample of etc/, with its paths where folder is another one than usual."""
    path = folder / name
    if path.exists():
        return []
    text = (samples() / name).read_text(encoding="utf-8")
    part = path.with_name(f".{name}.new")  # half of it would be taken for all, at the next run
    part.write_text(text.replace("/etc/spanvault", str(folder)), encoding="utf-8")
    part.chmod(0o644)
    part.rename(path)
    return [f"{path}: written, with the defaults explained"]


def _target(settings: Path, target: Path) -> list[str]:
    """Name the first replica's folder in the replicator's settings."""
    text = settings.read_text(encoding="utf-8")
    if any(line.startswith("[[targets]]") for line in text.splitlines()):
        return [f"{settings}: has targets already; {target} was not added"]
    target.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = str(target).replace("\\", "\\\\").replace('"', '\\"')
    block = f'\n[[targets]]\nname = "{target.name}"\nkind = "directory"\npath = "{path}"\n'
    settings.write_text(text + block, encoding="utf-8")
    return [
        f"{settings}: copies go to {target}. It must belong to spanvault-replicator, and its unit "
        "must be allowed to write there (see the comment in the file)."
    ]
