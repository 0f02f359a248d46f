"""A picture of sound as text."""

import numpy as np

from spanvault.audio.picture import Picture


def draw(stereo: np.ndarray, width: int = 28) -> list[str]:
    picture = Picture(8000)
    for block in np.split(stereo, range(8000, len(stereo), 8000)):
        picture.add(block.astype(np.int16))
    return picture.lines(width)


def test_who_speaks_when_can_be_seen():
    sound = np.zeros((4 * 8000, 2))
    sound[:16000, 0] = 32767
    sound[16000:, 1] = 32767
    assert draw(sound) == [
        "        ██████████          ",
        "caller  ██████████          ",
        "        ██████████          ",
        "                  ██████████",
        "callee            ██████████",
        "                  ██████████",
        "        0             0:04.0",
    ]


def test_quieter_is_lower():
    sound = np.zeros((3 * 8000, 2))
    for second, level in enumerate((32767, 2000, 40)):
        sound[8000 * second : 8000 * (second + 1), 0] = level
    heights = [sum(row[8 + at] != " " for row in draw(sound, 38)[:3]) for at in (0, 12, 25)]
    assert heights == [3, 2, 1]


def test_a_tenth_of_a_second_and_ten_hours_fill_the_same_width():
    for samples in (800, 8000 * 600):
        lines = draw(np.ones((samples, 2)) * 9999)
        assert {len(line) for line in lines} == {28}


def test_nothing_heard():
    assert draw(np.zeros((0, 2))) == ["no sound"]
