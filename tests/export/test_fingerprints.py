"""Fingerprints: equal for equal models, different as soon as a prediction may differ."""

import dataclasses
import pathlib
import shutil

import jax
import numpy as np
import pytest

from input_pipeline import storage
from input_pipeline.common.errors import InputError
from mail_jax.export import load


@pytest.fixture(scope="module")
def model(finished_run) -> load.LoadedModel:
  return load.load(str(finished_run), "last")


def test_a_model_that_is_loaded_again_has_the_same_fingerprint(model, finished_run):
  again = load.load(str(finished_run), "last")
  assert again.fingerprint() == model.fingerprint()
  assert len(model.fingerprint()) == 16


def test_one_bit_of_one_parameter_makes_another_model(model):
  seen = {model.fingerprint()}
  leaves, structure = jax.tree.flatten(model.variables)
  for number in (0, len(leaves) // 2, len(leaves) - 1):
    changed = list(leaves)
    values = np.array(leaves[number])
    values.reshape(-1)[-1] = np.nextafter(values.reshape(-1)[-1], np.float32(9))
    changed[number] = jax.device_put(values, leaves[number].sharding)
    other = dataclasses.replace(model, variables=jax.tree.unflatten(structure, changed))
    seen.add(other.fingerprint())
  assert len(seen) == 4


def test_where_a_run_worked_is_no_part_of_its_config(model):
  config = model.config.copy_and_resolve_references()
  config.mesh.fsdp, config.log_every, config.model.backend = 8, 7, "cudnn"
  assert load.fingerprint_config(config) == load.fingerprint_config(model.config)
  config.optimizer.lr *= 2
  assert load.fingerprint_config(config) != load.fingerprint_config(model.config)
  other = dataclasses.replace(model, config=config)
  assert other.fingerprint() != model.fingerprint()


def test_a_split_is_known_by_its_records(shapes_data, tmp_path):
  actual = {s: storage.fingerprint_split(shapes_data, "shapes", s) for s in ("val", "testA")}
  assert actual["val"] != actual["testA"]
  copied = tmp_path / "data"
  shutil.copytree(shapes_data, copied)
  assert storage.fingerprint_split(str(copied), "shapes", "val") == actual["val"]
  folder = pathlib.Path(storage.dataset_dir(str(copied), "shapes"))
  (path,) = folder.glob("*-val.tfrecord-*")
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)
  assert storage.fingerprint_split(str(copied), "shapes", "val") != actual["val"]
  assert storage.fingerprint_split(str(copied), "shapes", "testA") == actual["testA"]
  path.unlink()
  with pytest.raises(InputError, match=r"val has no record files; prepare shapes again"):
    storage.fingerprint_split(str(copied), "shapes", "val")
