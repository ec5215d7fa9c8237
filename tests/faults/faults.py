"""The faults, each with the expected outcome.

Each is a function of a place and a random generator that returns the outcome in words.
"""

import pathlib
import random
import re
import signal
import time
from collections.abc import Callable

from tests.faults.place import Place, a_file, check, logged, shard
from tests.support import shard_damage, small_disk, tiny_run

Fault = Callable[[Place, random.Random], str]
SAME = "the same losses, bit for bit"
REFUSED = "one line, exit code 2"


class Untried(Exception):
  """This fault is impossible on this machine; the message says why."""


def kill(place: Place, chance: random.Random) -> str:
  """Kills a run at a random time, and runs the same command again."""
  workdir, rows = place.new(), chance.randint(0, tiny_run.STEPS)
  child = place.train(workdir)
  child.wait_until(lambda: logged(workdir) >= rows)
  time.sleep(chance.random() * 0.3)
  child.send(signal.SIGKILL)
  child.wait()
  place.train(workdir).wait().went_well()
  place.same(workdir)
  return SAME


def stop_and_continue(place: Place, chance: random.Random) -> str:
  """Stops a run and continues it (SIGSTOP, SIGCONT), up to three times."""
  workdir = place.half_done()
  child = place.train(workdir)
  for _ in range(chance.randint(1, 3)):
    time.sleep(chance.random() * 4)
    child.send(signal.SIGSTOP)
    time.sleep(chance.random() * 2)
    child.send(signal.SIGCONT)
  child.wait().went_well()
  place.same(workdir)
  return SAME


def flipped_record(place: Place, chance: random.Random) -> str:
  """Flips a bit of a training record."""
  data = place.copied_data()
  path = shard(data, "train")
  shard_damage.flip(path, chance.randrange(path.stat().st_size), chance.randrange(8))
  place.train(place.new(), data=data).wait().refused(str(path), "record", "from byte", "on_error")
  return REFUSED


def truncated_records(place: Place, chance: random.Random) -> str:
  """Truncates the training records anywhere, in a third of the tries between two records."""
  data = place.copied_data()
  path = shard(data, "train")
  ends = [0, *(end for _, end in shard_damage.spans(path)[:-1])]
  size = chance.choice(ends) if chance.random() < 1 / 3 else chance.randrange(path.stat().st_size)
  shard_damage.truncate(path, size)
  place.train(place.new(), data=data).wait().refused(str(path), "record", "from byte")
  return REFUSED


def skipped_records(place: Place, chance: random.Random) -> str:
  """Damages training records, with `on_error = "skip"`.

  Compares a run that is killed and resumed with one that is not.
  """
  data, logs = place.copied_data(), []
  path = shard(data, "train")
  lost = chance.sample(shard_damage.spans(path), chance.randint(1, 3))
  for start, end in lost:
    shard_damage.flip(path, chance.randrange(start + 12, end), chance.randrange(8))
  for disturbed in (False, True):
    workdir, skip = place.new(), "--config.loader.on_error=skip"
    child = place.train(workdir, skip, data=data)
    if disturbed:
      rows = chance.randint(1, tiny_run.STEPS)
      child.wait_until(lambda: logged(workdir) >= rows)  # noqa: B023
      child.send(signal.SIGKILL)
      child.wait()
      child = place.train(workdir, skip, data=data)
    ended = child.wait()
    ended.went_well()
    named = re.findall(rf"record \d+ of {re.escape(str(path))}, from byte (\d+)", ended.err)
    check(sorted(map(int, named)) == sorted(start for start, _ in lost), ended.err[-2000:])
    check(f"{len(lost)} of 24 records are damaged" in ended.err, ended.err[-2000:])
    logs.append(tiny_run.log(workdir))
  check(logs[0] == logs[1], "other losses after the resume")
  return f"each is reported once; resumed: {SAME}"


def flipped_evaluation(place: Place, chance: random.Random) -> str:
  """Flips a bit of an evaluation record, which is never skipped, even with `on_error = "skip"`."""
  data = place.copied_data()
  path = shard(data, "val")
  shard_damage.flip(path, chance.randrange(path.stat().st_size), chance.randrange(8))
  child = place.train(place.half_done(), "--config.loader.on_error=skip", data=data)
  child.wait().refused(str(path), "record")
  return REFUSED


def flipped_checkpoint(place: Place, chance: random.Random) -> str:
  """Flips a bit of the newest checkpoint."""
  workdir = place.half_done()
  path = a_file(_newest(workdir), chance)
  shard_damage.flip(path, chance.randrange(path.stat().st_size), chance.randrange(8))
  place.train(workdir).wait().went_well()
  place.same(workdir)
  return SAME


def truncated_checkpoint(place: Place, chance: random.Random) -> str:
  """Truncates a file of the newest checkpoint."""
  workdir = place.half_done()
  path = a_file(_newest(workdir), chance)
  shard_damage.truncate(path, chance.randrange(path.stat().st_size))
  place.train(workdir).wait().went_well()
  place.same(workdir)
  return SAME


def all_checkpoints_damaged(place: Place, chance: random.Random) -> str:
  """Damages all checkpoints."""
  workdir = place.half_done()
  # A checkpoint that was being removed when the run was killed has none.
  for manifest in (workdir / "checkpoints").glob("*/manifest.json"):
    shard_damage.truncate(manifest, 40)
  place.train(workdir).wait().refused("all checkpoints are damaged", "--workdir")
  return REFUSED


def full_disk(place: Place, chance: random.Random) -> str:
  """Fills the file system of the workdir, frees space, and resumes."""
  disk = place.new()
  with small_disk.mounted(disk, megabytes=16) as is_there:
    if not is_there:
      raise Untried("needs to be root: mounts a small file system")
    workdir = place.half_done(disk / "run")
    filler = small_disk.fill(disk, left=chance.randrange(1_200_000))
    ended = place.train(workdir).wait()
    line = ended.refused("No space left on device", "MB free")
    check("needed" in line, line)
    filler.unlink()
    place.train(workdir).wait().went_well()
    place.same(workdir)
  return f"{REFUSED}; then {SAME}"


def no_permission_for_records(place: Place, chance: random.Random) -> str:
  """Denies reading the records of a split."""
  data = place.copied_data()
  path = shard(data, chance.choice(("train", "val")))
  path.chmod(0)
  place.train(place.new(), data=data, obedient=True).wait().refused(str(path), "ermission denied")
  return REFUSED


def no_permission_for_checkpoint(place: Place, chance: random.Random) -> str:
  """Denies reading a file of the newest checkpoint."""
  workdir = place.half_done()
  a_file(_newest(workdir) / "state", chance).chmod(0)
  place.train(workdir, obedient=True).wait().went_well()
  place.same(workdir)
  return SAME


def no_permission_for_workdir(place: Place, chance: random.Random) -> str:
  """Denies writing to the workdir."""
  workdir = place.new()
  workdir.mkdir(mode=0o500)
  place.train(workdir, obedient=True).wait().refused("--workdir", "Permission denied")
  return REFUSED


def clock_set_back(place: Place, chance: random.Random) -> str:
  """Sets the clock back ten days during a run, by patching `time.time` in its process."""
  workdir = place.half_done()
  place.train(workdir, clock_back_after=chance.random() * 8).wait().went_well()
  place.same(workdir)
  return SAME


def two_runs(place: Place, chance: random.Random) -> str:
  """Starts a second run in the workdir of a running one."""
  workdir = place.new()
  first = place.train(workdir)
  first.wait_until(lambda: logged(workdir) >= 1)
  first.send(signal.SIGSTOP)  # Otherwise it would end before the second one starts.
  second = place.train(workdir).wait()
  first.send(signal.SIGCONT)
  second.refused("is in use by another run", "pid")
  first.wait().went_well()
  place.same(workdir)
  return f"the second: {REFUSED}; the first: {SAME}"


def _newest(workdir: pathlib.Path) -> pathlib.Path:
  whole = [path for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()]
  return max(whole, key=lambda path: int(path.name))


# Ordered so that the first half minute has a variety of faults.
FAULTS: tuple[Fault, ...] = (
  two_runs,
  flipped_record,
  flipped_checkpoint,
  full_disk,
  kill,
  no_permission_for_records,
  skipped_records,
  truncated_records,
  stop_and_continue,
  truncated_checkpoint,
  clock_set_back,
  flipped_evaluation,
  no_permission_for_checkpoint,
  no_permission_for_workdir,
  all_checkpoints_damaged,
)
