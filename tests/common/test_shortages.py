"""Memory that runs out, and devices that are not there: one line with the way out."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run

from input_pipeline.common import errors
from input_pipeline.common.errors import InputError


class XlaRuntimeError(RuntimeError):
  """As jaxlib names it."""


class ResourceExhaustedError(Exception):
  """As TensorFlow names it."""


class RuntimeException(Exception):
  """As ONNX Runtime names it."""


@pytest.mark.parametrize(
  ("error", "said"),
  [
    (
      XlaRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 17179869184 bytes."),
      "out of memory: 17 GB more could not be had",
    ),
    (
      XlaRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 17.18GiB.\nmore"),
      "out of memory: 17.18GiB more could not be had",
    ),
    (
      MemoryError("Unable to allocate 422. MiB for an array with shape (27, 4096)"),
      "out of memory: 422 MiB more could not be had",
    ),
    (
      XlaRuntimeError(
        "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.55G of 15.75G hbm. "
        "Exceeded hbm capacity by 4.80G."
      ),
      "out of memory: 20.55G of 15.75G of the device's memory are needed",
    ),
    (ResourceExhaustedError("OOM when allocating tensor with shape[3,4]"), "out of memory"),
    (
      RuntimeException("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : bad allocation"),
      "out of memory",
    ),
    (RuntimeException("std::bad_alloc"), "out of memory"),
    (MemoryError(), "out of memory"),
    (XlaRuntimeError("INVALID_ARGUMENT: shapes differ"), None),
    (RuntimeError("my program says: out of memory"), None),
  ],
)
def test_each_librarys_error_about_memory_is_known(error, said):
  assert errors.describe_shortage(error) == said


@pytest.mark.parametrize(
  "allocate", [lambda: np.empty(2**60, np.uint8), lambda: jnp.zeros(2**46, jnp.uint8) + 1]
)
def test_what_the_libraries_here_raise_is_a_line_with_the_ways_out(allocate):
  with (
    pytest.raises(InputError, match=r"out of memory: .*try, in this order: less; more$"),
    errors.memory_errors(lambda: ["less", "more"]),
  ):
    jax.block_until_ready(allocate())


def test_a_command_out_of_memory_prints_a_line_and_exits_with_2(capsys):
  with pytest.raises(SystemExit, match="2"):
    errors.run_command(lambda: np.empty(2**60, np.uint8))
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith("error: out of memory") and "machine with more memory" in line


def test_other_errors_keep_their_traceback():
  def fail() -> None:
    raise RuntimeError("Unable to initialize backend 'tpu', I say")

  with pytest.raises(RuntimeError, match="I say"):
    errors.run_command(fail)


@pytest.mark.parametrize("platform", ["cuda", "nonsense"])
def test_a_platform_that_is_not_there_is_a_line(platform):
  code = """
import jax
from input_pipeline.common.errors import run_command
run_command(lambda: jax.jit(abs)(1))
"""
  done = subprocess.run(
    [sys.executable, "-c", code],
    env=os.environ | {"JAX_PLATFORMS": platform, "PYTHONPATH": str(tiny_run.CHECKOUT)},
    capture_output=True,
    text=True,
    check=False,
  )
  (line,) = done.stderr.splitlines()
  assert done.returncode == 2
  assert line.startswith(f"error: JAX_PLATFORMS={platform}: JAX has no such device here")
  assert line.endswith("unset it, or set it to cpu")
