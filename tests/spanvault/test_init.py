"""`spanvault init` on an empty folder, again, and after the administrator changed something."""

import re
import stat
from pathlib import Path

import pytest

from spanvault import init
from spanvault.daemon import config
from spanvault.keys import keyfile
from spanvault.transport import Clients, load_certificate


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def folder(tmp_path) -> Path:
    init.initialise(tmp_path / "etc")
    return tmp_path / "etc"


def test_secrets_are_for_their_owner_and_public_halves_for_everyone(folder):
    secrets = [*folder.rglob("*.key_secret"), folder / "keys/unlock.key"]
    secrets.append(folder / "keys/recovery.key")
    assert len(secrets) == 6
    assert {mode(path) for path in secrets} == {0o600}
    public = [path for path in folder.rglob("*") if path.is_file() and path not in secrets]
    assert {mode(path) for path in public} == {0o644}
    assert {mode(folder / name) for name in ("keys", "clients")} == {0o755}


def test_each_certificate_bears_its_role_and_all_but_storaged_are_clients(folder):
    for role in init.CERTIFICATES:
        certificate = load_certificate(folder / f"keys/{role}.key_secret")
        assert (certificate.role, certificate.secret is not None) == (role, True)
    assert sorted(path.stem for path in (folder / "clients").iterdir()) == [
        "capture", "operator", "replicator",
    ]  # fmt: skip
    clients = Clients(folder / "clients")
    assert clients.callback("", load_certificate(folder / "keys/capture.key").public)


def test_the_public_halves_belong_to_the_private_keys(folder):
    for name in ("unlock", "recovery"):
        private = keyfile.load(folder / f"keys/{name}.key")
        assert keyfile.load_public(folder / f"keys/{name}.pub") == keyfile.public_of(private)


def test_the_administrator_is_told_what_to_keep(tmp_path):
    said = "\n".join(init.initialise(tmp_path / "etc"))
    assert re.search(r"unlock\.key: made\. .*copy off this machine", said)
    assert re.search(r"recovery\.key: made\. .*safe", said)


def test_a_second_run_changes_and_says_nothing(folder):
    before = contents(folder)
    assert init.initialise(folder) == []
    assert contents(folder) == before


def test_what_was_taken_away_does_not_come_back(folder):
    (folder / "keys/recovery.key").unlink()  # it lies in a safe
    (folder / "clients/capture.key").unlink()  # shut out
    assert init.initialise(folder) == []
    assert not (folder / "keys/recovery.key").exists()
    assert not (folder / "clients/capture.key").exists()


def test_own_settings_stay(folder):
    (folder / "storaged.toml").write_text("commit_interval_s = 5.0\n")
    init.initialise(folder)
    assert (folder / "storaged.toml").read_text() == "commit_interval_s = 5.0\n"


def test_an_interrupted_run_is_completed(folder):
    recovery = keyfile.load(folder / "keys/recovery.key")
    (folder / "keys/recovery.pub").unlink()
    (folder / "keys/operator.key_secret").unlink()
    init.initialise(folder)
    assert keyfile.load_public(folder / "keys/recovery.pub") == keyfile.public_of(recovery)
    operator = load_certificate(folder / "keys/operator.key_secret")
    assert Clients(folder / "clients").callback("", operator.public)


def test_the_settings_point_into_the_folder_and_load(folder):
    for name, kind in config.FILES.items():
        settings = config.load(folder / name, kind)
        for field in kind.__struct_fields__:
            value = getattr(settings, field)
            if isinstance(value, Path) and value.suffix in (".key", ".key_secret", ".pub"):
                assert value.is_file()
                assert value.is_relative_to(folder)


def test_a_first_target(tmp_path):
    init.initialise(tmp_path / "etc", target=tmp_path / "copies")
    (target,) = config.load(tmp_path / "etc/replicator.toml", config.ReplicatorConfig).targets
    assert (target.name, target.kind, target.path) == ("copies", "directory", tmp_path / "copies")
    (line,) = init.initialise(tmp_path / "etc", target=tmp_path / "other")
    assert "was not added" in line


@pytest.mark.parametrize("name", config.FILES)
def test_a_sample_explains_every_key_and_shows_its_default(name):
    kind, path = config.FILES[name], init.samples() / name
    text = path.read_text(encoding="utf-8")
    settings, usual = config.load(path, kind), kind()
    for field in kind.__struct_fields__:
        line = re.search(rf"^(# )?{field} = |^# \[\[?{field}[].]", text, re.MULTILINE)
        assert line, f"{name} does not mention {field}"
        before = text[: line.start()].rstrip("\n").splitlines()[-1]
        assert before.startswith("#") or " = " in before, f"{name} does not explain {field}"
        if field not in ("name", "recovery_public"):
            assert getattr(settings, field) == getattr(usual, field)
