"""The progress of a run with and without a terminal, and its final table."""

import contextlib
import fcntl
import io
import os
import re
import signal
import struct
import subprocess
import sys
import termios

import numpy as np
import pytest
import tiny_run
from screen import Screen, seen

from input_pipeline.common.errors import InputError
from mail_jax.train import command as train
from mail_jax.train.logging import progress as sinks
from mail_jax.train.logging import terminal
from mail_jax.train.logging.progress import Progress
from mail_jax.train.logging.terminal import Terminal

DEADLINE = 120  # seconds, far more than needed


@pytest.fixture
def screen(monkeypatch):
  """A terminal on which everything is drawn immediately."""
  screen = Screen()
  monkeypatch.setenv("TERM", "xterm")
  monkeypatch.setattr("mail_jax.train.logging.terminal._REDRAW_EVERY", 0.0)
  yield screen
  screen.close()


def test_lines_stay_above_the_one_that_changes_and_that_one_goes_when_the_run_ends(
  screen, tmp_path
):
  with screen.as_stdout(), Progress(str(tmp_path), 0) as progress:
    progress.at(1, 10, 0.25)
    progress.trained("plain", "loss 0.5 and so on", 130.0)
    progress.at(2, 10, 0.5)
    progress.line("step 2  val: mIoU 0.5")
    progress.at(3, 10, 0.75)
    during = seen(screen.read())
  after = seen(screen.read())
  assert during[0] == "[  0:00] step 2  val: mIoU 0.5"
  assert re.match(r"step 3/10 \|.{14}\| epoch 0\.75  2 min left  loss 0\.5 and so on$", during[1])
  assert after == [during[0], ""]  # the plain line of `trained` was not printed


def test_an_evaluation_moves_the_line_through_its_sentences(screen, tmp_path):
  with screen.as_stdout(), Progress(str(tmp_path), 0) as progress:
    progress.evaluating(40, "val", 64, 6716)
    assert seen(screen.read())[-1].startswith("step 40  evaluating val |")
    assert seen(screen.read())[-1].endswith("64/6716 expressions")


def test_a_narrow_terminal_gets_one_line_that_is_cut(monkeypatch):
  narrow = Screen(columns=40)
  monkeypatch.setenv("TERM", "xterm")
  with narrow.as_stdout():
    terminal = Terminal()
    terminal.show("step 3/10", "words " * 30, 3, 10)
    drawn = seen(narrow.read())
    terminal.close()
  assert len(drawn) == 1 and 30 < len(drawn[0]) <= 40
  narrow.close()


def test_a_terminal_that_does_not_say_its_size_shows_the_line_too(screen):
  fcntl.ioctl(screen.device, termios.TIOCSWINSZ, struct.pack("HHHH", 0, 0, 0, 0))
  with screen.as_stdout():
    terminal = Terminal()
    terminal.show("step 3/10", "words", 3, 10)
    assert seen(screen.read())[-1].endswith("| words")
    terminal.close()


def test_the_line_is_drawn_a_few_times_a_second_and_not_at_every_step(screen, monkeypatch):
  monkeypatch.setattr("mail_jax.train.logging.terminal._REDRAW_EVERY", 3600.0)
  with screen.as_stdout():
    terminal = Terminal()
    for step in range(10_000):
      terminal.show(f"step {step}", "", step, 10_000)
    assert "step 0" in screen.read() and "step 1" not in screen.read()
    terminal.close()


@pytest.mark.parametrize("output", ["a pipe", "a dumb terminal"])
def test_what_is_no_terminal_gets_plain_lines_only(output, screen, monkeypatch, tmp_path, capsys):
  monkeypatch.setenv("TERM", "dumb")
  where = screen.as_stdout() if output == "a dumb terminal" else contextlib.nullcontext()
  with where, Progress(str(tmp_path), 0) as progress:
    progress.at(1, 10, None)
    progress.trained("step 1/10  the plain line", "live", 90.0)
    progress.evaluating(1, "val", 3, 9)
  printed = screen.read() if output == "a dumb terminal" else capsys.readouterr().out
  assert printed.replace("\r\n", "\n") == "[  0:00] step 1/10  the plain line\n"


# Programs that are started in the background ignore Ctrl-C.
_TRAIN = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from mail_jax.distributed.processes import run_command
from mail_jax.train.command import main
run_command(main)
"""


@pytest.mark.parametrize(
  ("number", "code", "last"),
  [
    (signal.SIGINT, -signal.SIGINT, "KeyboardInterrupt"),
    pytest.param(signal.SIGTERM, 0, r".*metrics\.jsonl", marks=pytest.mark.slow),
  ],
)
def test_a_run_on_a_terminal_that_is_stopped_leaves_it_clean(
  number, code, last, shapes_data, tmp_path
):
  screen = Screen()
  long = ["--config.steps=100000", "--config.log_every=5", "--config.eval_every=20"]
  command = [sys.executable, "-c", _TRAIN]
  run = subprocess.Popen(
    [*command, *tiny_run.arguments(shapes_data, tmp_path, *long, "--config.save_every=1000")],
    stdout=screen.device,
    stderr=screen.device,
    cwd=tiny_run.CHECKOUT,
    env=os.environ | {"TERM": "xterm", "PYTHON_COLORS": "0"},
  )
  try:
    sent = screen.read_until("val: mIoU", DEADLINE)
    screen.read_until("samples/s", DEADLINE)
    run.send_signal(number)
    assert screen.read_until_ended(run, DEADLINE) == code
  finally:
    run.kill()
  sent = screen.read()
  # Steps, epochs, speed, losses and time left in one line that is redrawn.
  assert re.search(
    r"step \d+/100000 \|[^|]+\| epoch [\d.]+  \d+ (s|min|h)[^|]* left  "
    r"\d+ samples/s.*loss [\d.]+ \(bce",
    sent,
  )
  lines = [line for line in seen(sent) if line]
  assert sum("val: mIoU" in line for line in lines) >= 1
  left = [line for line in lines if "|" in line and "samples/s" in line]
  assert not left, f"the changing line is left: {sent[-3000:]!r}"
  # A traceback of Orbax's event loop may follow, which the signal left half closed.
  after = lines[max(n for n, line in enumerate(lines) if "val: mIoU" in line) + 1 :]
  assert any(re.fullmatch(last, line) for line in after), lines
  screen.close()


def test_without_a_terminal_a_run_prints_plain_lines_and_ends_with_a_table(
  shapes_data, tmp_path, capsys
):
  train.main(tiny_run.arguments(shapes_data, tmp_path, "--config.steps=8", "--config.eval_every=4"))
  printed = capsys.readouterr().out
  assert "\r" not in printed and "\x1b" not in printed
  rows = tiny_run.rows(tmp_path)
  row = next(row for row in rows if row["step"] == 3)
  shown = re.search(
    r"step 3/8  loss ([\d.]+) \(bce ([\d.]+), dice ([\d.]+), selection ([\d.]+)\)", printed
  )
  assert shown
  values = [row[name] for name in ("loss", "bce", "dice", "selection")]
  np.testing.assert_allclose([float(x) for x in shown.groups()], values, atol=6e-4)
  assert re.search(r"step 3/8  .*  \d+ samples/s  data wait [\d.]+%  \d+ (s|min) left\n", printed)
  assert "step 4  checkpoint\n" in printed
  scores = {row["step"]: row for row in rows if "val/mIoU" in row}
  best = max(scores, key=lambda step: (scores[step]["val/mIoU"], step))
  table = printed[printed.index(f"{tmp_path}\n") :].splitlines()
  header, first = table[1].split(), table[2]
  assert first.startswith(f"val, step {best} (best")
  cells = dict(zip(header, first.split()[-len(header) :], strict=True))
  assert float(cells["mIoU"]) == pytest.approx(100 * scores[best]["val/mIoU"], abs=0.006)
  facts = "\n".join(table[3:])
  assert re.search(r"time +\d+ s  \d+ samples/s in training", facts)
  assert re.search(r"spent on +\w+ [\d.]+%", facts)
  assert f"{tmp_path}/checkpoints" in facts and f"{tmp_path}/metrics.jsonl" in facts


def test_the_table_shows_the_best_and_the_last_evaluation_of_all_starts():
  rows = [
    {"step": s, "val/mIoU": v, "val/P@0.5": v / 2} for s, v in ((10, 0.5), (20, 0.7), (30, 0.6))
  ]
  actual = terminal.best_and_last([*rows, {"step": 31, "loss": 1.0}], "val", "mIoU")
  assert {name: metrics["mIoU"] for name, metrics in actual.items()} == {
    "val, step 20 (best mIoU)": 0.7,
    "val, step 30 (last)": 0.6,
  }
  assert list(terminal.best_and_last(rows[:2], "val", "mIoU")) == ["val, step 20 (best and last)"]
  assert terminal.best_and_last([], "val", "mIoU") == {}


def test_the_time_that_is_left_counts_evaluations_and_checkpoints_to_come():
  """A hundred steps of 0.5 s took 50 s and 25 s of overhead; so will the next hundred."""
  assert terminal.seconds_left(100, 0.5, overhead=25.0, steps_done=100) == 75.0


@pytest.mark.parametrize(
  ("seconds", "words"),
  [(None, "? left"), (-3.0, "0 s left"), (42.0, "42 s left"), (7500.0, "2 h 05 min left")],
)
def test_time_left_in_words(seconds, words):
  assert terminal.time_left(seconds) == words


@pytest.mark.parametrize(
  ("setting", "extra"), [("log.tensorboard=True", "tensorboard"), ("log.wandb=project", "wandb")]
)
def test_a_package_that_is_missing_is_named_before_anything_is_written(
  setting, extra, shapes_data, tmp_path, monkeypatch
):
  monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
  workdir = tmp_path / "run"
  with pytest.raises(InputError, match=rf'pip install "mail_jax\[{extra}\]"'):
    train.main(tiny_run.arguments(shapes_data, workdir, f"--config.{setting}"))
  assert not workdir.exists()


def test_nothing_else_is_written_unless_it_is_asked_for(finished_run):
  assert sorted(path.name for path in finished_run.iterdir()) == [
    "checkpoints",
    "in_use",
    "metrics.jsonl",
  ]


def test_a_negative_number_of_images_is_refused():
  config = tiny_run.get_config()
  config.log.images = -1
  with pytest.raises(InputError, match=r"config\.log\.images is -1"):
    sinks.check(config)


def test_a_drawing_that_is_interrupted_is_removed(monkeypatch):
  """A signal can come between what is written and tqdm's note of its length."""

  class Device(io.StringIO):
    interrupted = False

    def isatty(self):
      return True

    def flush(self):
      if self.getvalue().endswith("samples/s") and not self.interrupted:
        self.interrupted = True
        raise KeyboardInterrupt

  device = Device()
  with monkeypatch.context() as patched:
    patched.setattr(terminal, "_columns", lambda: 79)
    patched.setenv("TERM", "xterm")
    patched.setattr(sys, "stdout", device)
    changing = Terminal()
    with pytest.raises(KeyboardInterrupt):
      changing.show("step 1/2", "10 samples/s", 1, 2)
    changing.close()
  assert not any("samples" in line for line in seen(device.getvalue()))
