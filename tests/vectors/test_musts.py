"""Each "must" of FORMAT.md is held by a test: musts.toml names it, and is held to the text here."""

import re
import tomllib
from pathlib import Path

from tests.vectors.test_key_vectors import sections

ROOT = Path(__file__).parents[2]
MUSTS = tomllib.loads((Path(__file__).parent / "musts.toml").read_text())["must"]
UNTESTED = 2  # what only those can do who run a store


def text_of(section: str) -> str:
    return " ".join(sections()[section].split())


def test_every_must_of_the_specification_is_in_the_list():
    for section in sections():
        text = text_of(section)
        for must in (one for one in MUSTS if one["section"] == section):
            assert text.count(must["says"]) == 1, must
            text = text.replace(must["says"], "")
        left = re.search(r".{60}\bmust\b.{0,60}", text)
        assert left is None, f"§{section}: … {left and left[0]} … is in no line of musts.toml"


def test_every_test_of_the_list_is_there():
    for must in MUSTS:
        for path, _, name in (test.partition("::") for test in must["tests"]):
            assert f"def {name}(" in (ROOT / path).read_text(), f"{path}::{name}"
    assert sum(not must["tests"] for must in MUSTS) == UNTESTED
