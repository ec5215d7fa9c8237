"""A full disk: earlier files stay, one line says how much is missing, nothing is half written."""

import asyncio
import errno
import gc
import logging
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import own_process
import pytest
import small_disk

from input_pipeline.common import atomic_files
from input_pipeline.common.errors import InputError
from input_pipeline.prepare import command as prepare
from mail_jax.checkpoints import checkpoint
from mail_jax.distributed import sharding
from mail_jax.export import command as export
from mail_jax.predict import outputs
from mail_jax.train.logging import progress

_TOLD = r"No space left on device: \d+\.\d MB free, at least \d+\.\d MB needed"


@pytest.fixture
def disk(tmp_path):
  """A real file system of 6 MB."""
  with small_disk.mounted(tmp_path / "disk", megabytes=6) as is_there:
    if not is_there:
      pytest.skip("needs to be root: mounts a small file system")
    yield tmp_path / "disk"


def _names(folder: pathlib.Path) -> list[str]:
  return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_save_that_does_not_fit_leaves_the_checkpoint_before_whole(disk):
  state = {"w": jnp.asarray(np.random.default_rng(0).random(250_000, np.float32))}
  run = disk / "run"
  checkpoints = checkpoint.Checkpoints(str(run))
  checkpoints.save(1, state, {"note": "first"}, {"mIoU": 0.5})
  checkpoints.close()
  filler = small_disk.fill(disk, left=400_000)
  checkpoints = checkpoint.Checkpoints(str(run))
  message = rf"--workdir .*checkpoint of step 2 cannot be written .*\({_TOLD}\)"
  with pytest.raises(InputError, match=message) as caught:
    checkpoints.save(2, state, {"note": "second"}, None)
    checkpoints.close()
  assert "at least 1.0 MB needed" in str(caught.value) and "0.4 MB free" in str(caught.value)
  assert [path.name for path in (run / "checkpoints").iterdir()] == ["1"]
  filler.unlink()
  again = checkpoint.Checkpoints(str(run))
  assert again.latest() == 1 and again.meta(1) == {"note": "first"}
  placed = jax.tree.map(lambda x: x.sharding, state)
  abstract = sharding.shapes_at(state, placed)
  np.testing.assert_array_equal(again.restore(1, abstract)["w"], state["w"])
  again.save(2, state, {"note": "second"}, None)
  again.close()
  assert checkpoint.Checkpoints(str(run)).latest() == 2


def test_a_file_that_does_not_fit_leaves_the_one_before(disk):
  path = disk / "folder" / "file"
  atomic_files.write_whole(path, "before")
  small_disk.fill(disk, left=1 << 20)
  with pytest.raises(InputError, match=rf"{path} cannot be written: {_TOLD}"):
    atomic_files.write_whole(path, b"x" * (3 << 20))
  assert path.read_text() == "before" and _names(disk / "folder") == ["file"]


def test_a_folder_that_does_not_fit_leaves_the_one_before(disk):
  with atomic_files.whole_folder(disk / "out") as folder:
    (folder / "a").write_text("before")
  small_disk.fill(disk, left=1 << 20)
  with (
    pytest.raises(InputError, match=rf"/out cannot be written: {_TOLD}"),
    atomic_files.whole_folder(disk / "out", overwrite=True) as folder,
  ):
    (folder / "a").write_bytes(b"x" * (3 << 20))
  assert (disk / "out/a").read_text() == "before" and _names(disk) == ["filler", "out", "out/a"]


def test_a_row_of_the_log_that_does_not_fit_is_reported(disk):
  log = progress.Progress(str(disk / "run"), 0)
  log.row(1, {"loss": 1.0})
  small_disk.fill(disk)
  with pytest.raises(InputError, match=rf"cannot write .*metrics\.jsonl: {_TOLD}"):
    for step in range(2, 200):
      log.row(step, {"loss": 1.0, "note": "x" * 100})
  log.close(failed=True)
  assert (disk / "run/metrics.jsonl").read_text().startswith('{"step": 1, "loss": 1.0}\n')


def test_a_data_set_that_does_not_fit_leaves_nothing(disk):
  small_disk.fill(disk, left=100_000)
  counts = ["--train_scenes", "40", "--eval_scenes", "2"]
  with pytest.raises(InputError, match=rf"--data_dir .*: shapes cannot be written: {_TOLD}"):
    prepare.main(["--dataset", "shapes", "--data_dir", str(disk / "data"), *counts])
  assert _names(disk) == ["filler"]


def test_a_model_that_does_not_fit_is_not_exported(disk, finished_run):
  small_disk.fill(disk, left=20_000)
  with pytest.raises(InputError, match=rf"/model cannot be written: {_TOLD}"):
    export.export(str(finished_run), str(disk / "model"), ("safetensors",))
  assert _names(disk) == ["filler"]


def test_predictions_that_do_not_fit_are_reported_and_earlier_ones_kept(disk):
  with outputs.open_writer(str(disk / "out"), {"model": "a"}, False) as writer:
    writer._file.write('{"image": "a.jpg", "number": 0, "overlay": "a.png"}\n')
  small_disk.fill(disk)
  with (
    pytest.raises(InputError, match=r"/out.* cannot be written: No space left .* MB free"),
    outputs.open_writer(str(disk / "out"), {"model": "a"}, False),
  ):
    (disk / "out/b.png").write_bytes(b"x" * 100_000)
  (disk / "filler").unlink()
  with outputs.open_writer(str(disk / "out"), {"model": "a"}, False) as writer:
    assert writer.done == {("a.jpg", None, 0)}


def test_a_quota_is_a_full_disk(tmp_path):
  """Simulated, without a file system."""
  with (
    pytest.raises(InputError, match=r"quota exceeded: \d+\.\d MB free"),
    atomic_files.whole_file(tmp_path / "file"),
  ):
    raise OSError(errno.EDQUOT, "Disk quota exceeded")


@pytest.mark.parametrize(
  ("path", "count"), [("site-packages/orbax/checkpoint/x.py", 0), ("x.py", 1)]
)
def test_concurrent_writes_of_orbax_that_fail_are_reported_once(path, count, caplog):
  """Asyncio's messages about unawaited futures are silenced for Orbax alone."""
  names: dict[str, Any] = {}
  exec(compile("async def write():\n  raise ValueError('no space')", path, "exec"), names)

  async def forget() -> None:
    waiting = asyncio.gather(names["write"](), names["write"]())
    await asyncio.sleep(0.01)
    del waiting

  checkpoint.silence_tracebacks()
  with caplog.at_level(logging.ERROR, "asyncio"):
    asyncio.run(forget())
    gc.collect()
  assert sum("never retrieved" in record.message for record in caplog.records) == count


def test_a_write_that_ends_after_the_first_one_failed_prints_nothing():
  code = """
import asyncio
import sys
import threading
import tensorstore
from mail_jax.checkpoints import checkpoint

sys.stderr = sys.stdout
promise, write = tensorstore.Promise.new()

async def wait():
  await write

async def wait_a_moment():
  await asyncio.wait([asyncio.ensure_future(wait())], timeout=0.01)

checkpoint.silence_tracebacks()
checkpoint.silence_tracebacks()
loop = asyncio.new_event_loop()
loop.run_until_complete(wait_a_moment())
loop.close()
thread = threading.Thread(target=promise.set_result, args=(None,))
thread.start()
thread.join()

class Other:
  def __del__(self):
    raise RuntimeError("something else")

Other()
"""
  printed = own_process.run(code)
  assert "Event loop is closed" not in printed
  assert printed.count("RuntimeError: something else") == 1
