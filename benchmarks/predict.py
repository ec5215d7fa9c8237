"""Measures the time of a prediction, and of the same network in PyTorch:

  python -m benchmarks.predict --batch_size 1 8 --config.image_size=384 --config.model.dtype=float32

From a batch on the device to logits, waiting for each, so that a batch of 1 measures the latency.
Our program and each peer have the same weights and inputs; their logits must agree before the
measurement. They take turns (A B A B), and the figures are medians over the turns. `--peers` are
the twin of `benchmarks/torch_twin.py`; compiled, it uses CUDA graphs on GPUs.
"""

import jax
import numpy as np
from ml_collections import ConfigDict

from benchmarks import contestants
from input_pipeline.common.errors import run_command
from mail_jax.export import load
from mail_jax.hardware import flops
from mail_jax.models.build import apply_model, init_variables, make_model, prepare_variables

# Largest difference of two logits: float32 on CPUs, TF32 on GPUs, and with bf16 inside.
TOLERANCE = {"float32": 1e-2, "bfloat16": 0.5}


def _some(logits: np.ndarray) -> list[float]:
  """Returns every 97th logit, for the comparison."""
  return [float(x) for x in logits.reshape(-1)[::97]]


def serve_ours(config: ConfigDict, folder: str) -> None:
  """Serves our network, as `mail_jax.predict` runs it."""
  model = make_model(config, contestants.VOCAB, operands=load.choose_operands(config))
  variables = jax.jit(lambda: init_variables(model, config))()
  contestants.write_variables(folder, jax.device_get(variables))
  variables = prepare_variables(model, variables)
  batch = jax.device_put(contestants.make_batch(config, config.batch_size))
  predict = jax.jit(lambda variables, batch: apply_model(model, variables, batch).logits)
  compiled = predict.lower(variables, batch).compile()
  memory = contestants.jax_memory()

  def run() -> jax.Array:
    return jax.block_until_ready(compiled(variables, batch))

  contestants.serve(
    lambda: _some(np.asarray(run())),
    run,
    lambda _: None,
    memory,
    lambda: contestants.plan_of(compiled, config.model.dtype),
  )


def serve_peer(name: str, config: ConfigDict, folder: str) -> None:
  """Serves the twin."""
  import torch  # pyright: ignore[reportMissingImports]

  twin, batch, device, memory = contestants.open_peer(name, config, folder)
  twin, on_gpu = twin.eval(), device == "cuda"
  if name == "compiled":
    twin = torch.compile(twin, mode="reduce-overhead" if on_gpu else "default")
  half = config.model.dtype == "bfloat16"

  def run() -> torch.Tensor:
    with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=half):
      logits, _ = twin(batch)
    if on_gpu:
      torch.cuda.synchronize()
    return logits

  def start() -> list[float]:
    run()
    run()  # CUDA graphs are recorded in the second
    return _some(run().float().cpu().numpy())

  contestants.serve(start, run, lambda _: None, memory)


CONTEST = contestants.Contest(
  "benchmarks.predict",
  __doc__,
  "expressions",
  lambda config: flops.forward_flops(config) * config.batch_size,
  TOLERANCE,
  serve_ours,
  serve_peer,
)


if __name__ == "__main__":
  run_command(CONTEST.main)
