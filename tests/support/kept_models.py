"""The models in `tests/data`, made once, by the first version with exports.

`python tests/support/kept_models.py`.

They are never written again: later versions must still read them. `make` documents their origin.
Only config keys that were renamed before the first release were edited since.
"""

import json
import pathlib
import shutil
import tempfile

import exported_models
import jax
import numpy as np
import tiny_run
from ml_collections import ConfigDict

DATA = pathlib.Path(__file__).parents[1] / "data"
RUN, EXPORTED, EXPECTED = DATA / "run_1", DATA / "exported_1", DATA / "expected_1.npz"
SENTENCE = "The leftmost STAR, please"


def get_config() -> ConfigDict:
  """Returns the recipe: as few parameters as the default model can have."""
  c = tiny_run.get_config()
  c.max_instances, c.max_tokens, c.vocab_size = 4, 8, 300
  c.steps, c.eval_every, c.save_every = 4, 4, 4
  c.model.width, c.model.heads = 4, 2
  c.model.patch_size, c.model.decoder_widths = 4, (4, 4)
  c.model.mlp_ratio = 2.0
  return c


def make() -> None:
  """Trains four steps on generated scenes, exports, and saves the outputs for a batch of noise."""
  from input_pipeline.prepare import command as prepare
  from mail_jax.export import command as export
  from mail_jax.export import load
  from mail_jax.train import command as train

  DATA.mkdir()
  with tempfile.TemporaryDirectory() as folder:
    prepare.main(
      ["--dataset", "shapes", "--data_dir", folder, "--train_scenes", "24", "--eval_scenes", "12"]
    )
    run = pathlib.Path(folder) / "run"
    train.main(["--config", __file__, "--data_dir", folder, "--workdir", str(run)])
    for old in sorted((run / "checkpoints").iterdir()):
      if old.name != str(get_config().steps):
        shutil.rmtree(old)
    shutil.copytree(run, RUN)
  export.export(str(RUN), str(EXPORTED))
  model = load.load(str(RUN))
  batch = exported_models.random_batch(model.config, 3)
  output = exported_models.run(model, batch)
  tokens = model.tokenizer([SENTENCE], model.config.max_tokens)[0]
  np.savez_compressed(
    EXPECTED,
    **batch,
    logits=output.logits,
    selection_logits=output.selection_logits,
    sentence_tokens=tokens,
  )
  sizes = {str(p.relative_to(DATA)): p.stat().st_size for p in DATA.rglob("*") if p.is_file()}
  print(json.dumps(sizes, indent=1), sum(sizes.values()), jax.__version__)


if __name__ == "__main__":
  make()
