"""Peak performance by JAX's names of devices."""

import pytest
import tiny_run

from mail_jax.hardware import chips, flops
from mail_jax.train import command as train


@pytest.mark.parametrize(
  ("kind", "half", "single"),
  [
    ("NVIDIA H200", 989.4e12, 494.7e12),
    ("NVIDIA H100 80GB HBM3", 989.4e12, 494.7e12),
    ("NVIDIA A100-SXM4-40GB", 312e12, 156e12),
    ("NVIDIA B200", 2250e12, 1125e12),
    ("NVIDIA L4", 121e12, 60e12),
    ("NVIDIA L40S", 362e12, 183e12),
    ("TPU v5 lite", 197e12, 197e12),
    ("TPU v5", 459e12, 459e12),
  ],
)
def test_a_device_has_the_peak_of_its_data_sheet(kind, half, single):
  assert chips.peak_flops_of(kind, "bfloat16") == half
  assert chips.peak_flops_of(kind, "float32") == single


@pytest.mark.parametrize(
  "kind", ["cpu", "NVIDIA GeForce RTX 4090", "TPU v99", "TPU v4 lite", "NVIDIA L400"]
)
def test_of_an_unknown_device_no_peak_is_claimed(kind):
  assert chips.peak_flops_of(kind, "bfloat16") is None


def test_mfu_is_the_share_of_the_peak_that_the_products_take(shapes_data, tmp_path, monkeypatch):
  peak = 1e12
  monkeypatch.setattr(chips, "peak_flops_of", lambda kind, dtype: peak)
  train.main(tiny_run.arguments(shapes_data, tmp_path, "--config.steps=4"))
  rows = [row for row in tiny_run.rows(tmp_path) if "mfu" in row]
  assert len(rows) == 4
  config = tiny_run.get_config()
  for row in rows:
    done = row["samples_per_second"] / config.batch_size * flops.train_step_flops(config)
    assert row["mfu"] == pytest.approx(done / peak)
