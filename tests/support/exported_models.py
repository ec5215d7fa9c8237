"""Shared by the tests of exported models: batches, images, and the comparison of two models."""

import hashlib
import json
import pathlib
import subprocess
import sys
from typing import Any

import jax
import numpy as np
import own_process
import tiny_model
from ml_collections import ConfigDict
from PIL import Image

from input_pipeline.preprocess import bit_planes
from mail_jax.export import load
from mail_jax.models.mail import Output

# Pixels whose logit is closer to the threshold may fall on either side of it.
MARGIN = 1e-4


def random_batch(config: ConfigDict, count: int, seed: int = 0) -> dict[str, np.ndarray]:
  """Returns a batch of noise with rectangles for instances.

  The first example has no instances, the last one as many as possible.
  """
  rng = np.random.default_rng(seed)
  size, slots = config.image_size, config.max_instances
  boxes = [tiny_model.random_boxes(rng, slots, size) for _ in range(count)]
  return {
    "image": rng.integers(0, 256, (count, size, size, 3), np.uint8),
    "instances": np.stack([bit_planes.packbits(masks) for masks in boxes]),
    "num_instances": np.linspace(0, slots, count).astype(np.int32),
    "tokens": rng.integers(1, 20, (count, config.max_tokens), np.int32),
    "num_tokens": rng.integers(3, config.max_tokens + 1, count, np.int32),
  }


def run(model: load.LoadedModel, batch: dict[str, np.ndarray]) -> Output:
  """Returns the outputs of a model for a batch, on the host."""
  return jax.device_get(jax.jit(model.apply)(model.on_one_device(), model.complete(batch)))


def assert_alike(
  ours: load.LoadedModel, theirs: load.LoadedModel, batch: dict[str, np.ndarray]
) -> float:
  """Compares all outputs of two models; returns the largest difference of a logit."""
  actual, expected = run(ours, batch), run(theirs, batch)
  np.testing.assert_allclose(actual.selection_logits, expected.selection_logits, atol=1e-4)
  np.testing.assert_allclose(actual.rho, expected.rho, atol=1e-4)
  np.testing.assert_array_equal(actual.planes, expected.planes)
  assert actual.logits.shape == expected.logits.shape
  difference = float(np.abs(actual.logits - expected.logits).max())
  assert difference < 1e-4
  assert expected.logits.std() > 1e-3  # Not constant.
  return difference


def assert_same_mask(found: np.ndarray, probability: np.ndarray) -> None:
  """Compares a mask with probabilities, but for pixels too close to the threshold."""
  assert found.shape == probability.shape
  wrong = found != (probability > 0.5)
  assert not (wrong & (np.abs(probability - 0.5) > MARGIN)).any()


def save_photo(path: pathlib.Path, seed: int = 0) -> np.ndarray:
  """Saves an image of smooth noise, not square, of another size than the model's; returns it."""
  rng = np.random.default_rng(seed)
  small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8))
  pixels = np.asarray(small.resize((90, 61), Image.Resampling.BICUBIC))
  Image.fromarray(pixels).save(path)
  return pixels


def edit_config(folder: pathlib.Path, **changes: dict[str, Any]) -> None:
  """Changes parts of the config in an exported folder."""
  path = folder / "config.json"
  about = json.loads(path.read_text())
  for part, values in changes.items():
    about["config"][part].update(values)
  path.write_text(json.dumps(about))


def run_script(script: pathlib.Path, *arguments: str, cwd: pathlib.Path) -> str:
  """Runs a script of an exported folder without our packages; returns what it prints."""
  environment = {"PATH": "/usr/bin:/bin", "TF_CPP_MIN_LOG_LEVEL": "3", "JAX_PLATFORMS": "cpu"}
  for package in ("mail_jax", "input_pipeline"):
    probe = subprocess.run(
      [sys.executable, "-c", f"import {package}"], cwd=cwd, env=environment, capture_output=True
    )
    assert b"ModuleNotFoundError" in probe.stderr
  done = subprocess.run(
    [sys.executable, str(script), *arguments],
    cwd=cwd,
    env=environment,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  return done.stdout


def sum_of(path: pathlib.Path) -> str:
  """Returns the SHA-256 of a file."""
  return hashlib.sha256(path.read_bytes()).hexdigest()


def evaluate_on_one_core(place: pathlib.Path, data_dir: str) -> str:
  """Evaluates in a process that has one core, where XLA has one thread; returns what it printed.

  A callback from a compiled program waits for ever there if its arguments are large (jax#24255).
  """
  code = """
import os, sys
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from mail_jax.evaluate import command
command.main(sys.argv[1:])
"""
  options = ["--data_dir", data_dir, "--data", "shapes/val", "--batch_size", "64"]
  return own_process.run(code, "--checkpoint", str(place), *options)
