"""storaged in its unit's sandbox, keys in a PKCS#11 token, the PINs as encrypted credentials."""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from spanvault import certificate
from spanvault import messages as m
from storaged.keys.slot import GRADE
from tests.e2e.test_systemd import STORAGED, ask, properties, state
from tests.support.container import PREFIX, Container
from tests.support.ingest import Ingest, identity
from tests.support.lab import Lab
from tests.support.softhsm import LABEL, MODULE, PIN

NEEDED = ("systemd-nspawn", "nsenter", "systemd-creds", "softhsm2-util")
LACKING = [name for name in NEEDED if shutil.which(name) is None]

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="a container needs root"),
    pytest.mark.skipif(bool(LACKING), reason=f"not installed: {', '.join(LACKING)}"),
]

KEYS = "/etc/spanvault/keys"
TOKEN = f"pkcs11:token={LABEL}?module-path={MODULE}"
UNLOCK = f"pkcs11:token={LABEL};object=unlock?module-path={MODULE}"
FOLDER, AWAY = "/var/lib/spanvault-token", "/var/lib/away"
CONFIG = "/etc/spanvault/softhsm2.conf"
MAKE_RSA = f"""
import pkcs11
token = pkcs11.lib("{MODULE}").get_token(token_label="{LABEL}")
with token.open(rw=True, user_pin="{PIN}") as session:
    session.generate_keypair(pkcs11.KeyType.RSA, 2048, label="unlock", store=True)
"""
# What docs/operating.md has an administrator put into the unit.
DROP_IN = f"""[Service]
StateDirectory=spanvault spanvault-token
Environment=SOFTHSM2_CONF={CONFIG}
LoadCredentialEncrypted=unlock.key.secret:{KEYS}/unlock.pin.cred
LoadCredentialEncrypted=erasure.pin:{KEYS}/erasure.pin.cred
"""


@pytest.fixture(scope="module")
def machine() -> Iterator[Container]:
    """A machine whose store was recorded to before, then told to use a token."""
    with Lab() as lab, Container(lab.network("span")) as machine:
        machine.run("systemd-sysusers", "/usr/local/lib/sysusers.d/spanvault.conf")
        machine.run("systemd-tmpfiles", "--create", "/usr/local/lib/tmpfiles.d/spanvault.conf")
        machine.run("systemctl", "start", STORAGED)
        machine.run("systemctl", "stop", STORAGED)
        make_token(machine)
        use_token(machine)
        machine.run("systemctl", "start", STORAGED)
        yield machine


def make_token(machine: Container) -> None:
    """A token in a folder of storaged's, with an RSA key, and an unlock key sealed to that."""
    conf = f"directories.tokendir = {FOLDER}\nlog.level = ERROR\n"
    machine.path(CONFIG).write_text(conf)
    machine.path(CONFIG).chmod(0o644)
    owner = ("-o", "spanvault-storaged", "-g", "spanvault")
    machine.run("install", "-d", "-m", "0700", *owner, FOLDER)
    as_storaged = ("setpriv", "--reuid=spanvault-storaged", "--regid=spanvault", "--clear-groups",
                   "env", f"SOFTHSM2_CONF={CONFIG}")  # fmt: skip
    machine.run(*as_storaged, "softhsm2-util", "--init-token", "--free", "--label", LABEL,
                "--so-pin", "1234", "--pin", PIN)  # fmt: skip
    machine.run(*as_storaged, f"{PREFIX}/bin/python", "-c", MAKE_RSA)
    make = ("keys", "make", f"{KEYS}/token.key", "--from", f"{KEYS}/unlock.key", "--pkcs11", UNLOCK)
    machine.run("env", f"SOFTHSM2_CONF={CONFIG}", f"{PREFIX}/bin/spanvault", *make)
    machine.run("mv", f"{KEYS}/token.key", f"{KEYS}/unlock.key")


def use_token(machine: Container) -> None:
    for name, secret in (("unlock", "unlock.key.secret"), ("erasure", "erasure.pin")):
        set_pin(machine, name, secret, PIN)
    settings = machine.path("/etc/spanvault/storaged.toml")
    more = f'erasure_token = "{TOKEN}"\nerasure_pin = "{KEYS}/erasure.pin"\n'
    settings.write_text(more + settings.read_text())
    drop_in = machine.path(f"/etc/systemd/system/{STORAGED}.d")
    drop_in.mkdir(parents=True, exist_ok=True)
    (drop_in / "token.conf").write_text(DROP_IN)
    machine.run("systemctl", "daemon-reload")


def set_pin(machine: Container, name: str, secret: str, pin: str) -> None:
    """A PIN as an encrypted credential: of use to this unit on this machine alone."""
    machine.run("bash", "-c", f"printf %s {pin} | systemd-creds encrypt --with-key=host "
                f"--name={secret} - {KEYS}/{name}.pin.cred")  # fmt: skip


def until(condition: Callable[[], bool], machine: Container, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            pytest.fail(said(machine))
        time.sleep(0.1)


def said(machine: Container) -> str:
    return machine.run("journalctl", "-n", "60", "-o", "export", "--no-pager", "-u", STORAGED)


def told(machine: Container) -> str:
    with ask(machine) as client:
        return client.status().state


def record(machine: Container, folder: Path, number: int) -> None:
    """A call, from a capture outside of the container."""
    keys, settings = machine.path(KEYS), folder / "capture.toml"
    settings.write_text(
        f'interface = "span0"\nstoraged = "ipc://{machine.path("/run/spanvault/ingest")}"\n'
        f'certificate = "{keys / "capture.key_secret"}"\n'
        f'storaged_certificate = "{keys / "storaged.key"}"\nstate_dir = "{folder}"\n'
    )
    with Ingest(settings) as ingest:
        ingest.store([number], 2, 8000)


def pools(machine: Container) -> dict[str, m.PoolKeys]:
    with ask(machine) as client:
        return {one.pool: one for one in client.keys().pools}


def test_store_opens_with_the_token_in_the_unchanged_sandbox(machine):
    until(lambda: state(machine, STORAGED) == "active", machine)
    assert properties(machine, STORAGED)["NRestarts"] == "0"
    until(lambda: pools(machine)["base"].grade == GRADE, machine)
    assert "The root key is in the token now" in said(machine)


def test_sandbox_stays_as_closed_as_without_a_token(machine):
    shown = properties(machine, STORAGED)
    closed = ("PrivateDevices", "MemoryDenyWriteExecute", "PrivateNetwork", "NoNewPrivileges")
    assert [shown[name] for name in closed] == ["yes"] * 4
    assert shown["ProtectSystem"] == "strict"
    told = machine.run("systemd-analyze", "security", "--no-pager", STORAGED)
    assert float(told.partition("Overall exposure level")[2].split(":")[1].split()[0]) <= 1.0


def test_pins_lie_nowhere_on_the_machine_but_encrypted(machine):
    found = machine.run("bash", "-c", f"grep -rlsF {PIN!r} {KEYS} /etc/spanvault /run/spanvault",
                        check=False)  # fmt: skip
    assert found == ""
    journal = machine.run("journalctl", "-o", "cat", "--no-pager", "-u", STORAGED)
    assert PIN not in [word.strip("'.:,") for word in journal.split()]


def test_certificate_of_an_erasure_says_that_the_token_destroyed_the_key(machine, tmp_path):
    record(machine, tmp_path, 1)
    with ask(machine) as client:
        until(lambda: client.get(identity(1)).sealed, machine)
        client.erase([identity(1)], "wanted", unfinished=False)
        facts, _ = certificate.parse(
            client.request(m.Certify(identity(1)), m.CertifyReply)[0].document
        )
    assert facts["grade"] == GRADE


@pytest.fixture
def refused(machine) -> Iterator[None]:
    """Puts the token and its PIN right again."""
    yield
    move(machine, AWAY, FOLDER)
    set_pin(machine, "unlock", "unlock.key.secret", PIN)
    machine.run("systemctl", "restart", STORAGED)
    until(lambda: not pools(machine)["base"].locked, machine)


def move(machine: Container, source: str, target: str) -> None:
    """What is in a folder into another."""
    machine.run("mkdir", "-p", source, target)
    machine.run("find", source, "-mindepth", "1", "-maxdepth", "1", "-exec", "mv", "-t", target,
                "{}", "+")  # fmt: skip


@pytest.mark.usefixtures("refused")
@pytest.mark.parametrize(
    ("case", "words"),
    [(0, "the PIN is wrong"), (1, f"no token '{LABEL}' is there: is it plugged in?")],
)
def test_without_it_storaged_records_locked_and_says_why(machine, tmp_path, case, words):
    if case == 0:
        set_pin(machine, "unlock", "unlock.key.secret", "9999")
    else:
        move(machine, FOLDER, AWAY)
    machine.run("systemctl", "restart", STORAGED)
    until(lambda: "pool base is locked" in told(machine), machine)
    assert words in told(machine)
    until(lambda: words in properties(machine, STORAGED)["StatusText"], machine)
    assert "The store is locked, it records and is not heard" in said(machine)
    record(machine, tmp_path, 10 + case)
    assert pools(machine)["base"].waiting


def test_what_was_recorded_locked_is_there_once_the_token_is(machine):
    with ask(machine) as client:
        for case in (0, 1):
            until(lambda: client.get(identity(10 + case)).sealed, machine)  # noqa: B023
