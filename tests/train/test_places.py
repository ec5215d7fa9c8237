"""Places of a run and its data: local folders and buckets, and errors for others."""

import importlib.util
import pathlib
from collections.abc import Iterator

import pytest
from etils import epath

from input_pipeline.common import buckets
from input_pipeline.common.errors import InputError
from mail_jax.checkpoints import checkpoint, manifest, s3_mirror
from mail_jax.distributed import processes
from mail_jax.train.logging import progress


@pytest.mark.parametrize(
  ("address", "package", "extra"), [("gs://b/run", "gcsfs", "gcs"), ("s3://b/run", "s3fs", "s3")]
)
def test_a_bucket_whose_package_is_missing_names_the_command_that_installs_it(
  monkeypatch, address, package, extra
):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  message = (
    rf"--workdir {address}: .* needs the package {package}; pip install 'mail_jax\[{extra}\]'"
  )
  with pytest.raises(InputError, match=message):
    checkpoint.Checkpoints(address)


def test_an_address_of_another_kind_is_refused():
  with pytest.raises(InputError, match="--workdir az://b/run: az:// is not supported"):
    checkpoint.exists("az://b/run")


def test_a_path_on_this_machine_is_made_absolute(monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  assert buckets.folder("runs/a", "--workdir") == epath.Path(tmp_path / "runs" / "a")


# A checkpoint is copied to a bucket that Orbax does not write to


def _checkpoint(folder: pathlib.Path) -> epath.Path:
  (folder / "state" / "d").mkdir(parents=True)
  for name in ("state/d/values", "state/_METADATA", "meta"):
    (folder / name).write_text(f"content of {name}")
  manifest.write(epath.Path(folder), {"metrics": {"mIoU": 0.5}})
  return epath.Path(folder)


@pytest.fixture
def memory() -> Iterator[str]:
  """An address that fsspec opens in memory."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(buckets._BUCKETS, "memory", ("fsspec", ""))
    yield "memory://bucket"


def test_a_copied_checkpoint_comes_back_as_it_was(memory, tmp_path):
  place = f"{memory}{tmp_path}/checkpoints"
  s3_mirror.S3Mirror(place).push(_checkpoint(tmp_path / "original"), 7)
  copy = s3_mirror.S3Mirror(place)
  copy.list()
  assert [path.name for path in copy.local.iterdir()] == ["7"]
  assert manifest.read_about(copy.local / "7") == {"metrics": {"mIoU": 0.5}}
  copy.fetch(7)
  manifest.check(copy.local / "7")
  assert (copy.local / "7/state/d/values").read_text() == "content of state/d/values"
  copy.keep([])
  later = s3_mirror.S3Mirror(place)
  later.list()
  assert list(later.local.iterdir()) == []


def test_a_copy_that_was_cut_off_is_no_checkpoint(memory, tmp_path, monkeypatch):
  place = f"{memory}{tmp_path}/checkpoints"
  original, copy = _checkpoint(tmp_path / "original"), s3_mirror.S3Mirror(place)
  copy.push(original, 7)
  put, done = copy._files.put, []

  def put_two(*paths):
    if len(done) == 2:
      raise KeyboardInterrupt
    done.append(put(*paths))

  monkeypatch.setattr(copy._files, "put", put_two)
  with pytest.raises(KeyboardInterrupt):
    copy.push(original, 7)  # over the one that is there
  monkeypatch.undo()
  again = s3_mirror.S3Mirror(place)
  again.list()
  assert list(again.local.iterdir()) == []


# The log


def test_only_process_0_prints_and_logs(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(processes, "is_main", lambda: False)
  log = progress.Progress(str(tmp_path), 0)
  log.row(1, {"loss": 1.0})
  log.line("hello")
  log.close()
  assert list(tmp_path.iterdir()) == []
  assert capsys.readouterr().out == ""
