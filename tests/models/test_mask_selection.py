"""F_M^rho by a loop over instances and patches, and kept outputs of every kind of model."""

import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_model

from mail_jax.models.mask_selection import MaskSelection

KEPT = pathlib.Path(__file__).parents[1] / "data" / "outputs.json"
KINDS = {
  "instance": {},
  "paper": {"preset": "paper"},
  "paper, hard": {"preset": "paper", "selection": "hard"},
  "soft": {"selection": "soft"},
  "multi": {"selection": "multi", "no_target": True},
  "none": {"selection": "none"},
  "stacked": {"mask_tokens": "stacked"},
  "no paths": {"mask_path": False, "image_path": False},
  "multiway": {"experts": "multiway"},
  "no instances": {"slots": 0},
}
"""Changes of the base recipe. To keep new outputs:
`PYTHONPATH=.:tests/support python tests/models/test_mask_selection.py`.
"""


def _gelu(x):
  return 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _dense(x, layer):
  return [
    sum(x[i] * layer["kernel"][i][o] for i in range(len(x))) + layer["bias"][o]
    for o in range(len(layer["bias"]))
  ]


def _by_loop(kind, params, masks, image, summary, coverage, valid, target):
  """One example: F_M^rho, rho and the logits."""
  slots, patches, width = len(masks), len(image), len(image[0])
  logits = []
  for k in range(slots):
    area = sum(coverage[k])
    inside = [
      sum(coverage[k][n] * image[n][d] for n in range(patches)) / max(area, 1e-6)
      for d in range(width)
    ]
    hidden = [_gelu(x) for x in _dense([*masks[k], *inside], params["score_in"])]
    logits.append(_dense(hidden, params["score_out"])[0] if valid[k] else -1e9)
  null = _dense(summary, params["null"])[0]
  if kind == "none":
    rho = [float(v) for v in valid]
  elif kind == "multi":
    rho = [
      float(valid[k] and (logits[k] > null if target is None else target[k])) for k in range(slots)
    ]
  else:
    powers = [math.exp(x - max([*logits, null])) for x in [*logits, null]]
    rho = [p / sum(powers) for p in powers[:slots]]
    if kind == "hard":
      best = max(range(slots + 1), key=[*logits, null].__getitem__) if target is None else target
      rho = [float(k == best) for k in range(slots)]
  features = [
    [sum(rho[k] * coverage[k][n] * masks[k][d] for k in range(slots)) for d in range(width)]
    for n in range(patches)
  ]
  return features, rho, [*logits, null]


@pytest.mark.parametrize("forced", [False, True])
@pytest.mark.parametrize("kind", ["soft", "hard", "multi", "none"])
def test_selection_is_that_of_a_loop(kind, forced):
  rng, batch, slots, patches, width = np.random.default_rng(0), 4, 5, 6, 3
  masks, image = rng.normal(size=(batch, slots, width)), rng.normal(size=(batch, patches, width))
  summary = rng.normal(size=(batch, width))
  # Instances overlap, cover parts of patches, and one covers nothing.
  coverage = rng.random((batch, slots, patches)) * (rng.random((batch, slots, patches)) < 0.6)
  coverage[0, 1] = 0
  valid = rng.random((batch, slots)) < 0.7
  valid[3] = False
  target = None
  if forced:
    target = rng.random((batch, slots)) < 0.5 if kind == "multi" else np.array([slots, 0, 2, 1])
  inputs = [jnp.float32(x) for x in (masks, image, summary, coverage)] + [jnp.asarray(valid)]
  module = MaskSelection(kind, hidden=4)
  shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)
  params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes["params"])
  forced_to = None if target is None else jnp.asarray(target)
  actual = jax.jit(module.apply)({"params": params}, *inputs, forced_to)
  for b in range(batch):
    expected = _by_loop(
      kind,
      jax.tree.map(np.ndarray.tolist, params),
      *(x[b].tolist() for x in inputs),
      target=None if target is None else target[b].tolist(),
    )
    for one, other in zip(actual, expected, strict=True):
      np.testing.assert_allclose(one[b], other, rtol=1e-4, atol=1e-4)


def _outputs(kind: str) -> dict[str, list[float]]:
  """Some numbers of what a model of fixed parameters returns for fixed inputs."""
  config = tiny_model.make_config(**KINDS[kind])
  variables = tiny_model.random_variables(config)
  if config.max_instances:
    # So that an instance is chosen, and F_M^rho is not zero.
    variables["params"]["selection"]["null"]["bias"] -= 4
  output = tiny_model.run(config, variables, tiny_model.make_inputs(config))
  tiles = np.asarray(output.tiles, np.float64)
  numbers = {
    "mean": tiles.mean((1, 2, 3)),
    "deviation": tiles.std((1, 2, 3)),
    "some": tiles.reshape(len(tiles), -1)[:, 7::101].ravel(),
    "rho": np.asarray(output.rho, np.float64).ravel(),
    "logits": np.asarray(output.selection_logits, np.float64).ravel(),
  }
  return {name: [float(f"{x:.6g}") for x in values] for name, values in numbers.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_model_returns_what_it_returned(kind):
  actual = _outputs(kind)
  if KINDS[kind].get("slots", 1):
    assert sum(actual["rho"]) > 1
  for name, expected in json.loads(KEPT.read_text())[kind].items():
    np.testing.assert_allclose(actual[name], expected, rtol=2e-3, atol=2e-3, err_msg=name)


if __name__ == "__main__":
  rows = [f"{json.dumps(kind)}: {json.dumps(_outputs(kind))}" for kind in KINDS]
  KEPT.write_text("{\n" + ",\n".join(rows) + "\n}\n")
