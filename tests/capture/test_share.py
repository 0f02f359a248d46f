"""A port that mirrors twice is told of, and no longer once that was mended."""

from capture.share import Share


def shares(copies_a_packet: list[float], packets: int = 1000) -> list[float]:
    """What is told every 20 s."""
    share_of, heard, again, told = Share(), 0, 0.0, []
    for at, share in enumerate(copies_a_packet):
        told.append(round(share_of.look(20.0 * at, heard, round(again)), 2))
        heard, again = heard + packets, again + packets * share
    return told


def test_every_packet_twice_is_told_of():
    assert shares([1.0] * 4) == [0.0, 1.0, 1.0, 1.0]


def test_one_vlan_of_two_mirrored_twice_is_told_of_by_its_share():
    assert shares([0.4] * 3)[-1] == 0.4


def test_what_senders_repeat_is_no_mirror():
    assert shares([0.02] * 4) == [0.0] * 4


def test_of_few_packets_nothing_is_said():
    assert shares([1.0] * 4, packets=100) == [0.0] * 4


def test_a_mirror_that_was_mended_is_forgotten_after_a_minute():
    assert shares([1.0] * 3 + [0.0] * 6)[-1] == 0.0
