"""Shape checking for every test, and the data they share."""

import os
import pathlib
import sys
import tempfile
import urllib.request
from collections.abc import Iterator

import bucket_servers
import hurry

# Later tests, and programs that they start, load what one test has compiled.
_CACHE = tempfile.TemporaryDirectory(prefix="mail_jax_tests_")

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XDG_CACHE_HOME"] = _CACHE.name  # tests leave nothing at home
# Code that is compiled fast runs slower and computes the same; tests compile longer than they run.
os.environ["XLA_FLAGS"] = f"{hurry.flags()} {os.environ.get('XLA_FLAGS', '')}"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", _CACHE.name)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import hypothesis
import jaxtyping
import numpy as np
import pytest
from PIL import Image

# Before anything imports them: a wrong shape fails at the call with it.
jaxtyping.install_import_hook(["mail_jax", "input_pipeline"], "beartype.beartype")

from input_pipeline.common import terminal

# What tests compare does not depend on how fast a machine is.
terminal._SILENCE = 3600

# The first call of a jitted function takes seconds, and a run should be repeatable.
hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True)
hypothesis.settings.load_profile("repeatable")


def pytest_sessionfinish() -> None:
  """Saves coverage early: pytest-xdist kills a process that takes seconds to end."""
  if (coverage := sys.modules.get("coverage")) and (measured := coverage.Coverage.current()):
    measured.save()


_REALDATA = pathlib.Path(__file__).parents[2] / "shared" / "realdata"


@pytest.fixture(scope="session")
def realdata() -> pathlib.Path:
  """Folder of real images, annotations and expressions, which is not part of the project."""
  if not _REALDATA.is_dir():
    pytest.skip("needs ../shared/realdata beside the checkout: real COCO photos and expressions")
  return _REALDATA


@pytest.fixture(scope="session")
def shapes_data(tmp_path_factory: pytest.TempPathFactory) -> str:
  """Data folder with 24 generated training scenes and 12 per other split, prepared once."""
  from input_pipeline.prepare import command as prepare

  data_dir = str(tmp_path_factory.mktemp("shapes_data"))
  counts = ["--train_scenes", "24", "--eval_scenes", "12"]
  prepare.main(["--dataset", "shapes", "--data_dir", data_dir, *counts])
  return data_dir


@pytest.fixture(scope="session")
def finished_run(shapes_data: str, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  """Folder of a finished run of `tiny_run.py` on `shapes_data`; must not be changed."""
  import tiny_run

  from mail_jax.train import command as train

  workdir = tmp_path_factory.mktemp("runs") / "finished"
  train.main(tiny_run.arguments(shapes_data, workdir))
  return workdir


@pytest.fixture
def compilations() -> Iterator[list[str]]:
  """Names of the programs that XLA has compiled, or loaded from its cache, so far."""
  import jax

  names: list[str] = []

  def listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
    del duration_secs
    if event == "/jax/core/compile/backend_compile_duration":
      names.append(str(kwargs["fun_name"]))

  jax.monitoring.register_event_duration_secs_listener(listen)
  yield names
  jax.monitoring.unregister_event_duration_listener(listen)


@pytest.fixture(scope="session")
def exported(finished_run: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  """The finished run in all formats without extra requirements; must not be changed."""
  from mail_jax.export import command as export

  folder = tmp_path_factory.mktemp("exported") / "tiny"
  export.export(str(finished_run), str(folder), ("safetensors", "stablehlo", "saved_model"))
  return folder


@pytest.fixture(scope="session")
def exported_onnx(exported: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  """The finished run as ONNX, which needs extra packages; must not be changed."""
  from mail_jax.export import command as export

  pytest.importorskip("onnx")
  pytest.importorskip("onnxruntime")
  folder = tmp_path_factory.mktemp("exported") / "onnx"
  export.export(str(exported), str(folder), ("safetensors", "onnx"))
  return folder


@pytest.fixture(scope="session")
def five_photos(realdata) -> list[np.ndarray]:
  """Five real images of three sizes."""
  folder = realdata / "coco/train2014"
  images, sizes = [], {}
  for path in sorted(folder.glob("*.jpg")):
    image = np.asarray(Image.open(path).convert("RGB"))
    if sizes.setdefault(image.shape, 0) < 2 and len(images) < 5:
      sizes[image.shape] += 1
      images.append(image)
  assert len({image.shape for image in images}) >= 3
  return images


# One server per process and protocol: file systems keep the address that they first had.
@pytest.fixture(scope="session")
def gcs_server() -> Iterator[str]:
  """The address of a local server with the protocol of Google Cloud Storage."""
  pytest.importorskip("gcp_storage_emulator", reason="needs gcp-storage-emulator (make extras)")
  with bucket_servers.serve("gcs") as address:
    yield address


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
  """The address of a local server with the protocol of S3."""
  pytest.importorskip("moto.server", reason="needs moto (make extras)")
  with bucket_servers.serve("s3") as address:
    urllib.request.urlopen(urllib.request.Request(f"{address}/bucket", method="PUT")).close()
    yield address


@pytest.fixture(scope="module")
def gcs(gcs_server: str) -> Iterator[str]:
  """A bucket of that server."""
  with pytest.MonkeyPatch.context() as patch:
    # gcsfs asks Google for the type of the bucket, unless this is set before it is imported.
    patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    patch.setenv("GOOGLE_CLOUD_PROJECT", "nobody")
    pytest.importorskip("gcsfs", reason="needs gcsfs (make extras)")
    patch.setenv("STORAGE_EMULATOR_HOST", gcs_server)
    patch.setenv("TENSORSTORE_GCS_HTTP_URL", gcs_server)
    yield "gs://bucket"


@pytest.fixture(scope="module")
def s3(s3_server: str) -> Iterator[str]:
  """A bucket of that server."""
  pytest.importorskip("s3fs", reason="needs s3fs (make extras)")
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("AWS_ENDPOINT_URL", s3_server)
    patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    patch.setenv("AWS_ACCESS_KEY_ID", "anybody")
    patch.setenv("AWS_SECRET_ACCESS_KEY", "anything")
    yield "s3://bucket"
