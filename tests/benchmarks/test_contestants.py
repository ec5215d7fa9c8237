"""Comparisons of programs run to their end, and refuse programs that differ."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run

from benchmarks import contestants, evaluate, growth, kernels, loop, predict, train_step
from input_pipeline.common.errors import InputError

TINY = ["--config", tiny_run.__file__, "--config.image_size=96", "--config.max_instances=16"]
TURNS = ["--rounds", "2", "--repeats", "1"]


def run(contest: contestants.Contest, tmp_path, *more: str) -> list[dict]:
  path = tmp_path / "table.json"
  contest.main([*TINY, *TURNS, "--json", str(path), *more])
  return json.loads(path.read_text())["rows"]


@pytest.mark.slow
@pytest.mark.extras
@pytest.mark.parametrize(
  ("module", "batches", "peers"),
  [(train_step, (1,), ("eager", "oneDNN")), (predict, (1, 2), ("eager",))],
)
def test_every_program_is_measured_at_every_batch_size(module, batches, peers, tmp_path, capsys):
  pytest.importorskip("torch")
  pytest.importorskip("transformers")
  sizes = map(str, batches)
  rows = run(module.CONTEST, tmp_path, "--peers", *peers, "--batch_size", *sizes)
  assert [(row["batch"], row["program"]) for row in rows] == [
    (batch, name) for batch in batches for name in ("mail_jax", *peers)
  ]
  for row in rows:
    assert row["ms"] > 0
    assert row["peak GB"] > 0.1
    assert row["MFU"] is row["products ms"] is None  # of this CPU, no peak is known
    # Ours alone has predictions. A process holds more than its program: the libraries, at least.
    assert (row["planned GB"] is not None) == (row["program"] == "mail_jax")
    assert (
      not row["planned GB"] or 0 < row["of them temporary"] < row["planned GB"] < row["peak GB"]
    )
  assert {row["ours is so many times as fast"] for row in rows if row["program"] == "mail_jax"} == {
    1
  }
  assert "| mail_jax |" in capsys.readouterr().out


@pytest.mark.extras
@pytest.mark.slow
def test_other_weights_are_noticed_before_anything_is_timed(tmp_path, monkeypatch):
  pytest.importorskip("torch")
  pytest.importorskip("transformers")
  # The peer's process answers; here its answer is changed.
  ask = contestants.Contestant.ask

  def other(self, what, **arguments):
    answer = ask(self, what, **arguments)
    return list(np.array(answer) + 1) if self.name == "eager" and what == "start" else answer

  monkeypatch.setattr(contestants.Contestant, "ask", other)
  with pytest.raises(RuntimeError, match=r"eager is up to 1\S* from ours: not the same network"):
    run(predict.CONTEST, tmp_path, "--batch_size", "1", "--peers", "eager")


@pytest.mark.slow
def test_the_loop_is_compared_with_its_step(tmp_path, capsys):
  path = tmp_path / "table.json"
  small = ["--config", tiny_run.__file__, "--config.model.depth=1"]
  loop.main([*small, "--steps", "5", "--rounds", "1", "--json", str(path)])
  around, bare = json.loads(path.read_text())["rows"]
  assert around["ms per step"] > 0
  assert float(around["times the bare step"]) == pytest.approx(
    around["ms per step"] / bare["ms per step"], rel=1e-2
  )
  with pytest.raises(InputError, match=r"--steps 5: must be at least config\.log_every, 6"):
    loop.main([*small, "--steps", "5", "--config.log_every=6"])


@pytest.mark.slow
@pytest.mark.parametrize("how", [[], ["--train"]])
def test_growth_has_a_row_a_change_and_the_config_itself_is_one(how, tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(growth, "SIZES", {"small": (16, 1, 2), "as it is": (32, 1, 2)})
  path = tmp_path / "table.json"
  growth.main(
    [
      "--config",
      tiny_run.__file__,
      "--dimension",
      "model",
      "--rounds",
      "1",
      "--json",
      str(path),
      *how,
    ]
  )
  small, same = json.loads(path.read_text())["rows"]
  assert (same["time"], same["products"]) == (1, 1)
  assert 0 < small["products"] < 1
  assert small["ms"] > 0


def test_an_evaluation_is_compared_with_its_model(shapes_data, tmp_path, capsys):
  path = tmp_path / "table.json"
  evaluate.main(
    ["--config", tiny_run.__file__, "--data_dir", shapes_data, "--data", "shapes/val",
     "--sentences", "20", "--rounds", "1", "--json", str(path)]
  )  # fmt: skip
  result = json.loads(path.read_text())
  assert result["sentences"] == 20
  assert [row["contestant"] for row in result["rows"]] == ["evaluation", "model"]
  assert "| evaluation |" in capsys.readouterr().out


def test_kernels_are_added_up_by_kind(tmp_path):
  path = tmp_path / "table.json"
  kernels.main([*TINY, "--batch_size", "2", "--json", str(path)])
  rows = json.loads(path.read_text())["rows"]
  assert sum(float(row["share"].rstrip("%")) for row in rows) == pytest.approx(100, abs=1)
  assert {"matrix products", "other fusions"} <= {row["kind"] for row in rows}


@pytest.mark.parametrize(
  ("kernel", "kind"),
  [
    ("sm90_xmma_gemm_bf16bf16_bf16f32", "matrix products"),
    ("nvjet_hsh_128x256_64x4", "matrix products"),
    ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma", "attention"),
    ("sm90_xmma_fprop_implicit_gemm_bf16", "convolutions"),
    ("loop_convert_fusion", "other fusions"),
    ("input_reduce_fusion_3", "reductions"),
    ("wrapped_transpose", "copies and transpositions"),
    ("custom-thing", "others"),
  ],
)
def test_a_kernel_has_the_kind_that_its_name_says(kernel, kind):
  assert kernels.kind_of(kernel) == kind


def test_kernels_are_added_up_by_the_part_that_they_are_from():
  @jax.jit
  def program(x):
    with jax.named_scope("MaIL/encoder/block00/qkv"):
      x = x @ x.T
    with jax.named_scope("MaIL/decoder/stage0"):
      x = jnp.sort(x, axis=0)
    return x.sum()

  text = program.lower(jnp.ones((96, 96))).compile().as_text()
  assert {"encoder: products of qkv, out and the MLP", "decoder"} <= set(
    kernels.parts_of(text).values()
  )
