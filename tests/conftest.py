"""Shape checking for every test, and the data they share."""

import os
import pathlib
import sys
import tempfile
from collections.abc import Iterator

import hurry

# What one test compiles, later ones and the programs that they start load.
_CACHE = tempfile.TemporaryDirectory(prefix="mail_jax_tests_")

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XDG_CACHE_HOME"] = _CACHE.name  # tests leave nothing at home
# Code that is compiled in a hurry runs slower and computes the same; tests compile for longer than they run.
os.environ["XLA_FLAGS"] = f"{hurry.flags()} {os.environ.get('XLA_FLAGS', '')}"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", _CACHE.name)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import hypothesis
import jaxtyping
import numpy as np
import pytest
from PIL import Image

# Before anything imports them: from here on a wrong shape fails at the call that made it.
jaxtyping.install_import_hook(["mail_jax", "input_pipeline"], "beartype.beartype")

# The first call of a jitted function takes seconds, and a run should be repeatable.
hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True)
hypothesis.settings.load_profile("repeatable")


def pytest_sessionfinish() -> None:
  """Writes what `make coverage` has measured: a process of pytest-xdist is killed where its end takes seconds."""
  if (coverage := sys.modules.get("coverage")) and (measured := coverage.Coverage.current()):
    measured.save()


_REALDATA = pathlib.Path(__file__).parents[2] / "shared" / "realdata"


@pytest.fixture(scope="session")
def realdata() -> pathlib.Path:
  """Folder of real photos, annotations and expressions, which is not part of the project."""
  if not _REALDATA.is_dir():
    pytest.skip("needs ../shared/realdata beside the checkout: real COCO photos and expressions")
  return _REALDATA


@pytest.fixture(scope="session")
def shapes_data(tmp_path_factory: pytest.TempPathFactory) -> str:
  """Data folder with 24 generated training scenes and 12 in each other split, prepared once."""
  from input_pipeline.prepare import command as prepare

  data_dir = str(tmp_path_factory.mktemp("shapes_data"))
  counts = ["--train_scenes", "24", "--eval_scenes", "12"]
  prepare.main(["--dataset", "shapes", "--data_dir", data_dir, *counts])
  return data_dir


@pytest.fixture(scope="session")
def finished_run(shapes_data: str, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  """Folder of a finished run of `tiny_run.py` on `shapes_data`; not to be changed."""
  import tiny_run

  from mail_jax.train import command as train

  workdir = tmp_path_factory.mktemp("runs") / "finished"
  train.main(tiny_run.arguments(shapes_data, workdir))
  return workdir


@pytest.fixture
def compilations() -> Iterator[list[str]]:
  """Grows by a name for each program that XLA makes, or loads ready-made."""
  import jax

  found: list[str] = []

  def listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
    del duration_secs
    if event == "/jax/core/compile/backend_compile_duration":
      found.append(str(kwargs["fun_name"]))

  jax.monitoring.register_event_duration_secs_listener(listen)
  yield found
  jax.monitoring.unregister_event_duration_listener(listen)


@pytest.fixture(scope="session")
def exported(finished_run: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  """The finished run in every format that needs nothing but our requirements; not to be changed."""
  from mail_jax.export import command as export

  folder = tmp_path_factory.mktemp("exported") / "tiny"
  export.export(str(finished_run), str(folder), ("safetensors", "stablehlo", "saved_model"))
  return folder


@pytest.fixture(scope="session")
def exported_onnx(exported: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  """The same as ONNX, which needs packages that are not required; not to be changed."""
  from mail_jax.export import command as export

  pytest.importorskip("onnx")
  pytest.importorskip("onnxruntime")
  folder = tmp_path_factory.mktemp("exported") / "onnx"
  export.export(str(exported), str(folder), ("safetensors", "onnx"))
  return folder


@pytest.fixture(scope="session")
def five_photos(realdata) -> list[np.ndarray]:
  """Five real photos of three sizes."""
  folder = realdata / "coco/train2014"
  found, sizes = [], {}
  for path in sorted(folder.glob("*.jpg")):
    photo = np.asarray(Image.open(path).convert("RGB"))
    if sizes.setdefault(photo.shape, 0) < 2 and len(found) < 5:
      sizes[photo.shape] += 1
      found.append(photo)
  assert len({photo.shape for photo in found}) >= 3
  return found
