"""What a daemon said is read back as it was meant."""

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spanvault.daemon.journal import StderrHandler
from spanvault.daemonlog import Said, parse, parse_all


def written(level: int, message: str, **fields: object) -> str:
    record = logging.makeLogRecord(
        {"levelno": level, "levelname": logging.getLevelName(level), "msg": message} | fields
    )
    return StderrHandler().format(record)


def test_message_and_fields():
    line = written(logging.WARNING, "RTP gap", SSRC="0x0000abcd", LOST_PACKETS=3)
    assert parse(line) == Said("warning", "RTP gap", {"SSRC": "0x0000abcd", "LOST_PACKETS": "3"})
    assert parse(line).sentence == "RTP gap (ssrc 0x0000abcd, lost_packets 3)"


def test_a_fault_is_the_sentence():
    said = parse(
        written(logging.ERROR, "capture file", FAULT='/tmp/it\'s a "file".pcap: cut', HINT="x")
    )
    assert said.serious
    assert said.sentence == '/tmp/it\'s a "file".pcap: cut'
    assert said.fields["HINT"] == "x"


@given(st.text(min_size=1))
def test_any_value_comes_back(value: str):
    assert parse(written(logging.INFO, "here", VALUE=value)).fields == {"VALUE": value}


@pytest.mark.parametrize("line", ["Segmentation fault", "ModuleNotFoundError: No module named 'x'"])
def test_what_is_no_line_of_ours_is_an_error(line: str):
    assert parse(line) == Said("error", line, {})


def test_of_a_traceback_the_last_line_counts():
    lines = ["Traceback (most recent call last):", '  File "x"', "    run()", "KeyError: 5", ""]
    assert [one.sentence for one in parse_all(lines)] == ["KeyError: 5"]
