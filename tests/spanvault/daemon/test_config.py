"""Settings: what is wrong is named with its file and line."""

from pathlib import Path

import pytest

from spanvault.daemon.config import (
    FILES,
    CaptureConfig,
    OperatorConfig,
    ReplicatorConfig,
    StoragedConfig,
    credential,
    load,
)


def fault(path: Path, kind: type, text: str) -> str:
    path.write_text(text)
    with pytest.raises(ValueError) as told:  # noqa: PT011 - the text is what is tested
        load(path, kind)
    return str(told.value)


def test_an_unknown_key_is_named_with_file_and_line(tmp_path: Path):
    path = tmp_path / "capture.toml"
    told = fault(path, CaptureConfig, '# a comment\nname = "a"\n\nringg_mb = 64\n')
    assert told.startswith(f"{path}:4: unknown key 'ringg_mb'. Known here: name, interface, ")
    assert "ring_mb" in told


def test_an_unknown_key_of_a_target_names_the_keys_of_targets(tmp_path: Path):
    path = tmp_path / "replicator.toml"
    told = fault(
        path, ReplicatorConfig, '[[targets]]\nname = "b"\nkind = "directory"\npaht = "/x"\n'
    )
    assert told == f"{path}:4: unknown key 'paht'. Known here: name, kind, path"


def test_a_wrong_type_is_named_with_file_and_line(tmp_path: Path):
    path = tmp_path / "capture.toml"
    told = fault(path, CaptureConfig, 'interface = "eth1"\nring_mb = "many"\n')
    assert told.startswith(f"{path}:2: ")
    assert "int" in told


@pytest.mark.parametrize("line", ["ring_mb = 0", "silence_s = -1.0", "bye_grace_s = 0"])
def test_an_impossible_value_is_refused(tmp_path: Path, line: str):
    assert ":1: " in fault(tmp_path / "capture.toml", CaptureConfig, line)


def test_what_is_no_toml_says_where(tmp_path: Path):
    assert "line 2" in fault(
        tmp_path / "storaged.toml", StoragedConfig, 'store = "/x"\nthis is not\n'
    )


def test_a_file_that_is_not_there_or_no_text(tmp_path: Path):
    with pytest.raises(ValueError, match=r"no\.toml: cannot be read \(No such file"):
        load(tmp_path / "no.toml", OperatorConfig)
    (tmp_path / "latin.toml").write_bytes(b"# caf\xe9\n")
    with pytest.raises(ValueError, match="not UTF-8"):
        load(tmp_path / "latin.toml", OperatorConfig)


@pytest.mark.parametrize("name", FILES)
def test_an_empty_file_gives_the_defaults(tmp_path: Path, name: str):
    (tmp_path / name).write_text("")
    assert load(tmp_path / name, FILES[name]) == load(tmp_path / name, FILES[name])


@pytest.mark.parametrize("name", FILES)
def test_the_commented_samples_are_valid(name: str):
    load(Path(__file__).parents[3] / "etc" / name, FILES[name])


def test_a_secret_that_systemd_hands_over_goes_before_the_file_named(tmp_path, monkeypatch):
    named, given = tmp_path / "etc/unlock.key", tmp_path / "credentials"
    given.mkdir()
    assert credential(named) == named
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(given))
    assert credential(named) == named
    (given / "unlock.key").touch()
    assert credential(named) == given / "unlock.key"
