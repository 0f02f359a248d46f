"""Which pool a call enters: each condition, their order, and what is no rule at all."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spanvault.daemon.config import CaptureConfig, StoragedConfig, load
from spanvault.daemon.rules import DAYS, Rule, hours, place
from tests.support.vault import make_call

BERLIN = ZoneInfo("Europe/Berlin")


def fits(call: dict[str, Any] | None = None, **rule: Any) -> bool:
    return Rule("core", **rule).fits(make_call(1, **(call or {})))


@pytest.mark.parametrize(
    ("number", "fitting"),
    [
        ("+49300000001", True),
        ("+49 (30) 000-0001", True),
        ("+4930*", True),
        ("+493012345678", True),  # the callee
        ("+4931*", False),
        ("+4930000000", False),
        ("0300000001", False),
    ],
)
def test_number_is_either_partys_exact_or_its_beginning(number, fitting):
    assert fits(number=[number]) is fitting


def test_name_is_matched_in_any_case():
    assert fits({"caller": "Alice.B"}, number=["alice.b"])


def test_did_is_what_was_dialled_not_who_called():
    assert fits(did=["+493012345678"])
    assert fits({"callee": "reception", "dialled": "+493099"}, did=["+493099"])
    assert not fits({"caller": "+493099"}, did=["+493099"])


def test_trunk_is_an_address_or_network_of_either_end():
    ends = {"hosts": ["192.0.2.10", "2001:db8::5"]}
    for network in ("192.0.2.10", "192.0.2.0/24", "2001:db8::/32"):
        assert fits(ends, trunk=[network])
    assert not fits(ends, trunk=["198.51.100.0/24"])
    assert not fits({"hosts": ["nonsense"]}, trunk=["0.0.0.0/0"])
    assert not fits(trunk=["0.0.0.0/0"])


def test_header_is_a_pattern_in_any_case_and_must_be_there():
    kept = {"headers": {"x-class": ["Legal-7", "x"]}}
    assert fits(kept, header={"X-Class": "legal-?"})
    assert not fits(kept, header={"X-Class": "legal"})
    assert not fits(header={"X-Class": "*"})


def test_a_bracket_in_a_pattern_is_one():
    """As mail lists and ticket systems begin a Subject."""
    wanted = {"Subject": "[Urgent]*"}
    assert fits({"headers": {"subject": ["[urgent] call back"]}}, header=wanted)
    for other in ("nothing", "urgent", "u"):
        assert not fits({"headers": {"subject": [other]}}, header=wanted)


def test_number_is_the_form_that_was_signalled():
    """No plan of a country's or a PBX's prefixes is guessed: each form is a value of its own."""
    forms = ["+4930555001", "004930555001", "030555001"]
    for number in forms:
        assert [fits({"caller": number}, number=[each]) for each in forms].count(True) == 1
        assert fits({"caller": number}, number=forms)


@pytest.mark.parametrize(
    ("schedule", "moment", "fitting"),
    [
        ("mon-fri 08:00-18:00", (2026, 11, 20, 8, 0), True),  # a Friday
        ("mon-fri 08:00-18:00", (2026, 11, 20, 18, 0), False),
        ("mon-fri 08:00-18:00", (2026, 11, 21, 12, 0), False),
        ("sat,sun 00:00-24:00", (2026, 11, 22, 23, 59), True),
        ("fri 22:00-06:00", (2026, 11, 21, 5, 59), True),  # into the next day
        ("fri 22:00-06:00", (2026, 11, 20, 5, 59), False),
        ("sat-mon 10:00-11:00", (2026, 11, 23, 10, 30), True),  # over the end of the week
    ],
)
def test_schedule_is_local_time_when_the_call_began(schedule, moment, fitting):
    started_ns = int(datetime(*moment, tzinfo=BERLIN).timestamp()) * 1_000_000_000
    assert (
        fits({"started_ns": started_ns}, schedule=[schedule], timezone="Europe/Berlin") is fitting
    )


def test_all_conditions_of_a_rule_must_hold():
    both = {"number": ["+4930*"], "header": {"x-class": "*"}}
    assert not fits(**both)
    assert fits({"headers": {"x-class": ["a"]}}, **both)


def test_first_rule_that_fits_decides_and_else_the_default():
    rules = [Rule("sensitive", number=["+49300000001"]), Rule("core", number=["+4930*"])]
    assert place(make_call(1), rules, "base") == "sensitive"
    assert place(make_call(2), rules, "base") == "core"
    assert place(make_call(2, caller="x", callee="y"), rules, "base") == "base"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("", "a rule without a condition"),
        ('number = ["+49*30"]', "'+49*30' is no number"),
        ('number = ["*"]', "'*' is no number"),
        ('trunk = ["10.0.0.0/33"]', "'10.0.0.0/33' is no address and no network"),
        ('schedule = ["workdays 8-18"]', "is no schedule"),
        ('schedule = ["mon 24:30-25:00"]', "is no schedule"),
        ('schedule = ["mon 08:00-24:01"]', "names an hour that no day has"),
        ('schedule = ["mox 08:00-18:00"]', "names no day"),
        ('number = ["1"]\ntimezone = "Mars/Olympus"', "is no time zone"),
        ('numbers = ["1"]', "unknown key 'numbers'"),
        ('number = ["+49 (0)30 1"]', "has a (0) that is dialled within the country: omit it"),
        ('did = ["+49(0)89*"]', "has a (0)"),
        ('trunk = ["pbx.example.org"]', "'pbx.example.org' is no address and no network"),
        ('header = { s = "x" }', "'s' is no header's name. Write it as 'X-Class'"),
        ('header = { "X-Class:" = "x" }', "without the colon"),
        ('number = "+4930"', 'Write it in brackets: ["…"]'),
        ("header = {}", "a rule without a condition"),
        ('timezone = "UTC"', "a rule without a condition"),
    ],
)
def test_a_wrong_rule_is_told_with_the_line_it_stands_in(tmp_path: Path, row: str, said: str):
    path = tmp_path / "storaged.toml"
    path.write_text(
        '[pools.core]\n\n[[rules]]\npool = "core"\nnumber = ["+49*"]\n\n'
        f'[[rules]]\npool = "core"\n{row}\n'
    )
    with pytest.raises(ValueError, match=r"storaged\.toml:[79]: ") as caught:
        load(path, StoragedConfig)
    assert said in str(caught.value)


def test_a_rule_for_a_pool_that_is_not_set_up(tmp_path: Path):
    path = tmp_path / "storaged.toml"
    path.write_text('[[rules]]\npool = "sensitive"\nnumber = ["1"]\n')
    with pytest.raises(ValueError, match=r"toml:2: pool 'sensitive' has rules and no \[pools"):
        load(path, StoragedConfig)


@pytest.mark.parametrize(
    "text", ['[pools.secret]\n', 'default_pool = "secret"\n',
             '[[rules]]\npool = "secret"\nnumber = ["1"]\n'],
)  # fmt: skip
def test_a_pool_that_there_is_not_is_told_with_those_that_there_are(tmp_path: Path, text: str):
    path = tmp_path / "storaged.toml"
    path.write_text(text)
    with pytest.raises(
        ValueError, match=r"toml:\d: .*'secret'.*\. Pools are base, core, sensitive"
    ):
        load(path, StoragedConfig)


def test_a_header_to_keep_that_no_message_has(tmp_path: Path):
    path = tmp_path / "capture.toml"
    path.write_text('headers = ["X-Class", "s", "X-Line:"]\n')
    with pytest.raises(ValueError, match=r"toml:1: 'X-Line:' is no header's name"):
        load(path, CaptureConfig)


def test_schedule_over_the_days_on_which_clocks_change():
    """In Berlin 02:00 to 03:00 is not on 29 March 2026, and twice on 25 October."""
    night = {"schedule": ["sun 02:00-03:00"], "timezone": "Europe/Berlin"}
    for hour_utc, fitting in ((0, False), (1, False), (2, False)):
        begun = datetime(2026, 3, 29, hour_utc, 30, tzinfo=UTC)
        assert fits({"started_ns": int(begun.timestamp()) * 10**9}, **night) is fitting
    for hour_utc, fitting in ((23, False), (24, True), (25, True), (26, False)):
        begun = datetime(2026, 10, 24, tzinfo=UTC) + timedelta(hours=hour_utc, minutes=30)
        assert fits({"started_ns": int(begun.timestamp()) * 10**9}, **night) is fitting
    evening = {"schedule": ["sat 22:00-06:00"], "timezone": "Europe/Berlin"}
    for day, last_hour_utc in ((29, 3), (25, 4)):  # 05:30 by the clocks of that morning
        month = 3 if day == 29 else 10
        begun = datetime(2026, month, day, last_hour_utc, 30, tzinfo=UTC)
        assert fits({"started_ns": int(begun.timestamp()) * 10**9}, **evening)
        later = begun + timedelta(hours=1)
        assert not fits({"started_ns": int(later.timestamp()) * 10**9}, **evening)


@given(st.text(max_size=30), st.sampled_from(DAYS))
def test_arbitrary_schedules_raise_only_value_error(text, day):
    for row in (text, f"{day} {text}", f"{day}-{text}"):
        try:
            hours(row)
        except ValueError:
            continue
