"""What takes long says so."""

import time

import pytest

from input_pipeline.common import terminal


@pytest.fixture(autouse=True)
def hurried(monkeypatch):
  """Seconds are hundredths."""
  monkeypatch.setattr(terminal, "_SILENCE", 0.05)
  monkeypatch.setattr(terminal, "_LINE_INTERVAL", 0.1)


def test_long_work_says_what_it_is_and_again_how_long_it_has_taken():
  said, done = [], [0]
  with terminal.announce(lambda: f"counting, {done[0]} of 3", said.append, every=0.1):
    deadline = time.monotonic() + 30
    while len(said) < 3 and time.monotonic() < deadline:
      done[0] = len(said)
      time.sleep(0.01)
  assert said[0] == "counting, 0 of 3 ..."
  assert said[1] == "counting, 1 of 3 (0 s so far)"
  count = len(said)
  time.sleep(0.3)
  assert len(said) == count, "nothing is said once it is done"


def test_short_work_is_silent_and_an_error_ends_the_lines(capsys):
  with terminal.announce("blinking"):
    pass
  with pytest.raises(KeyError), terminal.announce("failing"):
    raise KeyError
  time.sleep(0.2)
  assert capsys.readouterr().err == ""


def test_where_there_is_no_terminal_a_bar_is_a_line_from_the_first_seconds_on(capsys):
  for _ in terminal.with_progress(range(30), "loader.cache", 30, "images"):
    time.sleep(0.01)
  lines = [line.strip() for line in capsys.readouterr().err.split("\n") if line.strip()]
  assert lines[0].startswith("loader.cache: ") and "of 30 images" in lines[0]
  assert len(lines) < 10
  for _ in terminal.with_progress(range(3), "short", 3, "images"):
    pass
  assert capsys.readouterr().err == ""
