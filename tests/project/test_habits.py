"""The lint rule for phrases finds what it is meant to find, and leaves English alone."""

import habits
import pytest


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    ("the run goes" + " on with step 3", ["goes on with"]),
    ("it is" + "\n  no list of masks", ["is no list"]),
    ("configs of" + " before", ["of before"]),
    ("Who" + "ever reads it; what" + "ever it is", ["Who" + "ever", "what" + "ever"]),
    ("5 ms a" + " step, and 300 samples a" + " second", ["ms a step", "samples a second"]),
    ("the key is" + " there twice", ["is there twice"]),
  ],
)
def test_habits_are_found(text, expected):
  assert [phrase for _, phrase, _ in sorted(habits.find(text))] == expected


@pytest.mark.parametrize(
  "text",
  [
    "there is no file",
    "it is no longer used, and no more than 3",
    "there is no such file; that is no reason to stop",
    "it takes a second, and has a device",
    "an amended commit",
    "it is to be resumed",
  ],
)
def test_english_is_left_alone(text):
  assert not list(habits.find(text))


def test_the_line_is_that_of_the_phrase():
  assert [line for line, *_ in habits.find("one\ntwo\nan" + "ew")] == [3]
