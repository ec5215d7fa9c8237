"""What a number was measured on, in a few letters: equal fingerprints, equal model, config or data."""

import hashlib
import json

import jax
import numpy as np
from ml_collections import ConfigDict

from input_pipeline.common import fingerprint
from mail_jax.config import MAY_CHANGE, flatten, to_json
from mail_jax.export.load import LoadedModel
from mail_jax.models.parameters import path_name


def of_config(config: ConfigDict) -> str:
  """Fingerprint of a config, without what says where a run works and how often it tells of itself."""
  settings = {
    key: value for key, value in flatten(to_json(config)).items() if not key.startswith(MAY_CHANGE)
  }
  return fingerprint.of_bytes(json.dumps(settings, sort_keys=True).encode())


def of_model(model: LoadedModel) -> str:
  """Fingerprint of all that a model's answers come from: parameters, statistics, config and tokenizer.

  That of a model that holds its parameters itself, such as an ONNX file, is of its files.
  """
  digest = hashlib.sha256(of_config(model.config).encode())
  digest.update(model.tokenizer.to_bytes())
  digest.update("".join(f"{name} {sha256}\n" for name, sha256 in model.files.items()).encode())
  for path, leaf in jax.tree_util.tree_leaves_with_path(model.on_one_device()):
    values = np.ascontiguousarray(leaf)
    digest.update(f"{path_name(path)} {values.dtype} {values.shape}\n".encode())
    digest.update(values.tobytes())
  return fingerprint.of_digest(digest)
