"""Who can open which pool: unlock, drill, lock, rotation, recipients; and by shares on paper."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from spanvault import messages as m
from spanvault import spool
from spanvault.cli import application
from spanvault.keys import keyfile
from spanvault.spool import key_id
from storaged.erasing.retiring import Retirer
from storaged.faults import Fault
from storaged.format.walk import finish
from storaged.keys import keyring, rootfile
from storaged.keys.keyring import Keyring
from storaged.requests.custody import Custody
from tests.storaged.recordings.test_sorting import SECRET, SECRET_CALL, TwoPools
from tests.support.vault import Rig, call_id, make_call, make_media

DAY = 86_400_000_000_000


class Office:
    """Two pools, and requests about their keys."""

    def __init__(self, folder: Path) -> None:
        self.two, self.now_ns = TwoPools(folder), 1_000 * DAY
        parts = self.two.parts
        (parts.folder / "refused").mkdir(exist_ok=True)
        self.retirer = Retirer(
            parts.index, parts.vaults, parts.opener, parts.folder / "refused", [], 30 * DAY,
            lambda: self.now_ns, lambda: self.now_ns,
        )  # fmt: skip
        self.custody = Custody(
            parts.index, parts.vaults, lambda: self.now_ns, parts.opener, self.retirer
        )

    def look(self) -> None:
        """What storaged does by itself each second."""
        finish(self.retirer.retiring())

    def ask(self, request: m.Message) -> m.Message:
        return self.custody.handlers[type(request)](request)

    def about(self, pool: str) -> m.PoolKeys:
        reply = self.ask(m.Keys())
        assert isinstance(reply, m.KeysReply)
        return next(one for one in reply.pools if one.pool == pool)

    @property
    def unlock_key(self) -> bytes:
        return keyfile.load(self.two.parts.folder / "unlock.key")

    def announced(self) -> list[str]:
        with self.two.parts.index.reading() as view:
            return [what.decode() for _, kind, what in view.changes(0, 100) if kind == b"k"]


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    made = Office(tmp_path / "store")
    yield made
    made.two.secret.pool.close()
    made.two.parts.close()


def test_drill_proves_and_changes_nothing(office):
    before = {path: path.read_bytes() for path in office.two.parts.folder.glob("keys/**/*[!s]")
              if path.is_file()}  # fmt: skip
    office.ask(m.Unlock("sensitive", office.two.key, drill=True))
    office.ask(m.Unlock("base", office.unlock_key, drill=True))
    for pool in ("base", "sensitive"):
        with pytest.raises(Fault, match="is not sealed to this key"):
            office.ask(m.Unlock(pool, os.urandom(32), drill=True))
    assert office.about("sensitive").locked
    assert before == {path: path.read_bytes() for path in before}


def test_unlock_and_lock(office):
    office.ask(m.Unlock("sensitive", office.two.key))
    assert not office.about("sensitive").locked
    office.ask(m.Lock("sensitive"))
    assert office.about("sensitive").locked
    assert office.about("sensitive").recipients == [key_id(keyfile.public_of(office.two.key))]
    office.ask(m.Unlock("sensitive", office.two.key))
    office.ask(m.Lock("base"))  # it vouches for the others
    assert (office.about("base").locked, office.about("sensitive").locked) == (True, True)
    with pytest.raises(Fault, match="pool base is locked"):
        office.ask(m.Unlock("sensitive", office.two.key))
    office.ask(m.Unlock("base", office.unlock_key))
    assert (office.about("base").locked, office.about("sensitive").locked) == (False, True)
    for key in (b"", bytes(32), bytes(31)):
        with pytest.raises(Fault, match="this is no key"):
            office.ask(m.Unlock("sensitive", key))
    with pytest.raises(Fault, match="pool core is not set up here"):
        office.ask(m.Unlock("core", os.urandom(32)))


def test_root_rotates_while_it_records(office):
    two = office.two
    office.ask(m.Unlock("sensitive", two.key))
    two.commit([(SECRET, 1, 0)], [SECRET_CALL])
    old = {path: path.read_bytes() for path in two.parts.folder.glob("keys/**/root")}
    blocks = [path.open("rb") for path in old]
    for pool in ("base", "sensitive"):
        office.ask(m.Rotate(pool, "root"))
        assert office.about(pool).epoch == 2
    for file, data in zip(blocks, old.values(), strict=True):
        assert data[36:100] not in file.read()  # its envelopes are overwritten where they lay
        file.close()
    two.commit([(SECRET, 1, 1)], [])
    assert all(path.read_bytes() != data for path, data in old.items())
    assert {"root", "sensitive/root"} <= set(office.announced())
    two.restart()
    two.secret.unlock(two.key)
    assert two.stored(SECRET) == [(1, 0), (1, 1)]


def test_ingest_key_rotates_old_spools_open_until_the_grace_has_passed(office):
    base = office.two.parts.keyring
    before = base.ingest_public
    sealed = spool.seal_batch([b"x", b"frame"], before)
    root = office.two.parts.folder / "keys/root"
    with root.open("rb") as blocks:
        old = root.read_bytes()
        office.ask(m.Rotate("base", "ingest"))
        assert old[36:100] not in blocks.read()  # overwritten where it lay
    assert base.ingest_public != before
    told = (office.two.parts.folder / "intake/keys").read_bytes()
    assert base.ingest_public in told  # else what comes while it is locked is sealed to the old one
    assert before not in told
    again = Keyring(office.two.parts.folder / "keys", office.unlock_key)
    assert spool.open_batch(sealed, again.ingest_key(key_id(before)))
    office.now_ns += 29 * DAY
    office.look()
    assert office.about("base").ingest_keys == 2
    office.now_ns += DAY
    office.look()
    assert office.about("base").ingest_keys == 1
    with pytest.raises(ValueError, match="not this store's, or was destroyed"):
        base.ingest_key(key_id(before))
    assert office.announced() == ["root"]


def test_ingest_key_of_a_pool_rotates_and_its_intake_opens(office):
    two = office.two
    two.commit([(SECRET, 1, 0)], [SECRET_CALL])
    two.secret.unlock(two.key)
    office.ask(m.Rotate("sensitive", "ingest"))
    office.ask(m.Lock("sensitive"))
    two.commit([(SECRET, 1, 1)], [])
    office.now_ns += 1_000 * DAY
    office.look()  # locked: nothing is destroyed that something waits for
    two.restart()
    two.secret.unlock(two.key)
    two.drain()
    assert two.stored(SECRET) == [(1, 0), (1, 1)]


def test_crash_between_the_two_roots_of_a_rotation_locks_nobody_out(office):
    two = office.two
    two.secret.unlock(two.key)
    two.secret.keyring.add_ingest_key()  # and base has not heard of it
    two.restart()
    two.secret.unlock(two.key)
    assert not two.secret.locked


@pytest.mark.parametrize("nth", [1, 2])
def test_rotation_of_which_one_root_cannot_be_written_locks_nobody_out(office, monkeypatch, nth):
    """The pool's own root has the key before base's names it: else nobody could unlock it."""
    two, written = office.two, list[Path]()
    two.secret.unlock(two.key)
    real = rootfile.put

    def put(folder: Path, data: bytes) -> None:
        written.append(folder)
        if len(written) == nth:
            raise OSError(5, "Input/output error")
        real(folder, data)

    with monkeypatch.context() as failing:
        failing.setattr(rootfile, "put", put)
        with pytest.raises(OSError, match="Input/output"):
            office.ask(m.Rotate("sensitive", "ingest"))
    two.restart()
    two.commit([(SECRET, 1, 0)], [SECRET_CALL])
    two.secret.unlock(two.key)
    two.drain()
    assert two.stored(SECRET) == [(1, 0)]


def test_private_key_is_never_taken_for_its_public_half(office):
    """A root names whom it is sealed to in the clear, and replicas have it."""
    two = office.two
    two.secret.unlock(two.key)
    before = (two.parts.folder / "keys/sensitive/root").read_bytes()
    with pytest.raises(Fault, match=r"this is a private key .* which would lie in its root"):
        office.ask(m.Recipients("sensitive", two.key, add=[two.key]))
    assert (two.parts.folder / "keys/sensitive/root").read_bytes() == before


def test_recipients_change_only_by_one_who_can_open(office):
    two, new = office.two, os.urandom(32)
    two.secret.unlock(two.key)
    public = keyfile.public_of(new)
    with pytest.raises(Fault, match="is not sealed to this key"):
        office.ask(m.Recipients("sensitive", new, add=[public]))
    office.ask(m.Recipients("sensitive", two.key, add=[public]))
    office.ask(m.Unlock("sensitive", new, drill=True))
    mine = key_id(keyfile.public_of(two.key))
    office.ask(m.Recipients("sensitive", new, remove=[mine]))
    with pytest.raises(Fault, match="is not sealed to this key"):
        office.ask(m.Unlock("sensitive", two.key, drill=True))
    with pytest.raises(Fault, match="nobody could open"):
        office.ask(m.Recipients("sensitive", new, remove=[key_id(public)]))
    with pytest.raises(Fault, match="is not sealed to a key 00"):
        office.ask(m.Recipients("sensitive", new, remove=["00"]))
    two.commit([(SECRET, 1, 0)], [SECRET_CALL])  # whose key was removed still writes


def test_root_that_somebody_put_on_the_disk_proves_nothing(office, tmp_path):
    """Sealed to his key, of this store by its id: he opens that, and not the pool's."""
    his = os.urandom(32)
    store_id = office.two.parts.keyring.store_id
    keyring.create(tmp_path / "his", store_id, [keyfile.public_of(his)])
    root = office.two.parts.folder / "keys/root"
    root.write_bytes((tmp_path / "his/root").read_bytes())
    with pytest.raises(Fault, match="is not sealed to this key"):
        office.ask(m.Recipients("base", his, [keyfile.public_of(his)]))
    assert office.about("base").recipients == [key_id(keyfile.public_of(office.unlock_key))]


def test_a_locked_pool_by_paper_shares(rig: Rig, tmp_path: Path):
    """Shares are made, the pool is set up, records locked, is drilled, unlocked, heard."""
    run = CliRunner().invoke
    made = run(
        application(["keys"]),
        [
            "keys",
            "shares",
            "--threshold",
            "2",
            "--count",
            "3",
            "--pub",
            f"{tmp_path}/sensitive.pub",
        ],
    )
    assert made.exit_code == 0
    papers = re.findall(r"# spanvault share .*\n(?:.+\n)+", made.stdout)
    typed = ["".join(paper.splitlines()[1:]) for paper in papers]
    with rig.config.open("a") as file:
        file.write(f"[pools.sensitive]\nrecipients = ['{tmp_path}/sensitive.pub']\n"
                   "[[rules]]\npool = 'sensitive'\nnumber = ['+4930*']\n")  # fmt: skip
    rig.start()
    capture, operator = rig.capture(), rig.client("operator")
    one = call_id(1)
    capture.send(m.Batch("test", 1, [make_call(1)]), make_media([(one, 1, 0)]))
    assert capture.receive(lambda frames: frames) is not None
    refused, _ = operator.ask(m.Get(one))
    assert (refused.code, refused.error) == ("locked", "pool sensitive is locked")
    assert "spanvault keys unlock sensitive" in refused.hint
    found, _ = operator.ask(m.Search())
    assert (found.calls, found.locked) == ([], ["sensitive"])
    settings = tmp_path / "spanvault.toml"
    settings.write_text(
        f"storaged = '{rig.requests}'\ncertificate = '{rig.folder}/secret/operator.key_secret'\n"
        f"storaged_certificate = '{rig.folder}/secret/storaged.key'\n"
    )

    def keys(*words: str, shares: list[str]) -> tuple[int, str]:
        done = run(application(["keys"]), ["keys", *words, "--shares", "--config", str(settings)],
                   input="\n".join(shares) + "\n")  # fmt: skip
        return done.exit_code, done.output

    listed = run(application(["calls"]), ["calls", "--config", str(settings)])
    assert "Pool sensitive is locked: its calls are not listed" in " ".join(listed.stderr.split())
    # A share with a wrong letter is asked for again.
    wrong = typed[0][:-1] + ("2" if typed[0][-1] != "2" else "3")
    assert keys("drill", "sensitive", shares=[wrong, typed[0], typed[2]])[0] == 0
    assert operator.ask(m.Get(one))[0].code == "locked"

    # Each holder at a terminal of his own; a restart forgets what was given.
    def give(paper: str) -> str:
        done = run(application(["keys"]), ["keys", "share", "sensitive", "--config", str(settings)],
                   input=paper + "\n")  # fmt: skip
        return " ".join((done.output or str(done.exception)).split())

    assert "shares given: 1; 2 are needed" in give(typed[0])
    assert "a letter of this share is wrong" in give(wrong)
    rig.stop()
    rig.start()
    assert "shares given: 2; 2 are needed" in give(typed[1])
    assert give(typed[2]) == "pool sensitive is open"
    assert "is open already" in give(typed[2])
    log = (rig.store / "log/access.log").read_text()
    assert "offershare" in log
    assert not any(group in log for group in typed[1].split())
    # On a new machine, where there is only paper: the key file that a restore takes.
    joined = run(application(["keys"]), ["keys", "make", f"{tmp_path}/again.key", "--shares"],
                 input="\n".join(typed[1:]) + "\n")  # fmt: skip
    assert joined.exit_code == 0
    again = keyfile.public_of(keyfile.load(tmp_path / "again.key"))
    assert again == keyfile.load_public(tmp_path / "sensitive.pub")
    position = operator.ask(m.Feed(0))[0].position
    while not isinstance(reply := operator.ask(m.Get(one))[0], m.GetReply) or not reply.sealed:
        fed, _ = operator.ask(m.Feed(position, wait_ms=10_000))
        assert fed.position > position
        position = fed.position
    assert (reply.call, reply.pool, reply.sealed) == (make_call(1), "sensitive", True)
