"""Masks made as for training: what is kept, what proposes them, how often, and what is said."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from input_pipeline import records, storage
from input_pipeline.common import fingerprint
from input_pipeline.common.errors import InputError
from input_pipeline.custom import command as custom_command
from input_pipeline.prepare import command as prepare
from input_pipeline.proposers import mask_recipe, registry
from input_pipeline.proposers.mask_recipe import MaskRecipe
from input_pipeline.proposers.selection import Selection
from mail_jax.checkpoints.checkpoint import Checkpoints
from mail_jax.export import load
from mail_jax.predict import command as predict
from mail_jax.predict.auto_masks import AUTO, AutoProposer
from mail_jax.predict.image_instances import ImageInstances
from mail_jax.predict.proposal_cache import ProposalCache
from mail_jax.predict.segmenter import Segmenter

STUB = "felzenszwalb"


class Counting:
  """Proposes the dark and the bright pixels, and counts the images of each call."""

  trained_on = "nothing"
  calls: tuple[int, ...] = ()

  def __init__(self, argument: str = ""):
    self.argument = argument

  def propose(self, images, image_ids):
    del image_ids
    Counting.calls += (len(images),)
    found = []
    for image in images:
      bright = image.mean(-1) > 127
      found.append(
        records.Instances(
          masks=np.stack([bright, ~bright]),
          scores=np.array([0.9, 0.8], np.float32),
          categories=np.zeros(2, np.int32),
          source="counting",
        )
      )
    return found


@pytest.fixture
def counting(monkeypatch) -> type[Counting]:
  """The stub in the place of a proposer of this project."""
  monkeypatch.setitem(registry.PROPOSERS, STUB, f"{__name__}.Counting")
  monkeypatch.setattr(registry, "find_class", lambda spec: Counting)
  monkeypatch.setattr(Counting, "calls", ())
  return Counting


@pytest.fixture
def without_packages(monkeypatch) -> None:
  found = registry.find_class

  def fail(spec):
    if spec == "none":
      return found(spec)
    raise InputError(f'--instances {spec.partition(":")[0]} needs a package: pip install "it"')

  monkeypatch.setattr(registry, "find_class", fail)


@pytest.fixture(scope="module")
def model(finished_run) -> load.LoadedModel:
  return load.load(str(finished_run))


def with_recipes(model: load.LoadedModel, *recipes: MaskRecipe) -> Segmenter:
  return Segmenter(dataclasses.replace(model, mask_recipes=recipes))


def photo(seed: int, height: int = 40, width: int = 60) -> np.ndarray:
  blocks = np.random.default_rng(seed).integers(0, 256, (height // 10, width // 10, 1))
  return np.kron(blocks, np.ones((10, 10, 3))).astype(np.uint8)


def test_a_second_expression_of_a_photo_costs_no_proposal(model, counting, tmp_path):
  segmenter = with_recipes(model, MaskRecipe(STUB))
  first = segmenter(photo(0), "red")
  assert counting.calls == (1,)
  bright = photo(0).mean(-1) > 127
  assert {mask.tobytes() for mask in first.instances} == {bright.tobytes(), (~bright).tobytes()}
  Image.fromarray(photo(0)).save(tmp_path / "a.png")
  for same in (photo(0), tmp_path / "a.png", (tmp_path / "a.png").read_bytes()):
    again = segmenter(same, ["the left star", "blue"])[0]
    np.testing.assert_array_equal(again.instances, first.instances)
  assert counting.calls == (1,)
  other = photo(0)
  other[0, 0, 0] ^= 1
  segmenter(other, "red")
  segmenter(photo(0).reshape(60, 40, 3), "red")  # the same bytes
  assert counting.calls == (1, 1, 1)
  assert len(segmenter(photo(0), "red", None).instances) == 0


def test_photos_of_a_batch_go_through_the_proposer_together(model, counting):
  segmenter = with_recipes(model, MaskRecipe(STUB))
  photos = [photo(0), photo(1, 50, 30), photo(2), photo(0)]
  texts = ["red", "the left star", "the large ring", "blue"]
  together = segmenter.batch(photos, texts)
  assert counting.calls == (3,)
  assert [result.expression for result in together] == texts
  alone = with_recipes(model, MaskRecipe(STUB))
  for image, text, result in zip(photos, texts, together, strict=True):
    expected = alone(image, text)
    np.testing.assert_array_equal(result.instances, expected.instances)
    np.testing.assert_allclose(result.probability, expected.probability, atol=1e-4)
    sure = np.abs(expected.probability - 0.5) > 1e-4
    np.testing.assert_array_equal(result.mask[sure], expected.mask[sure])
    np.testing.assert_allclose(
      result.instance_probability, expected.instance_probability, atol=1e-4
    )
  with pytest.raises(InputError, match="give one expression per image"):
    segmenter.batch(photos, texts[:2])


@pytest.mark.parametrize(("size", "calls"), [(1, (1, 1, 1)), (2, (2, 1))])
def test_predict_proposes_for_as_many_photos_as_asked(
  finished_run, counting, monkeypatch, tmp_path, size, calls
):
  monkeypatch.setattr(load, "_mask_recipes", lambda *args, **options: (MaskRecipe(STUB),))
  (tmp_path / "photos").mkdir()
  for k in range(3):
    Image.fromarray(photo(k)).save(tmp_path / "photos" / f"{k}.png")
  predict.main([
    *("--checkpoint", str(finished_run), "--image", str(tmp_path / "photos")),
    *("--text", "red", "--text", "blue", "--out", str(tmp_path / "out")),
    *("--batch_size", str(size)),
  ])  # fmt: skip
  assert counting.calls == calls
  rows = (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()
  assert [json.loads(row)["instances"] for row in rows] == [2] * 6


def test_a_missing_package_is_an_error_that_says_what_to_do(
  finished_run, without_packages, monkeypatch, tmp_path
):
  recipe = MaskRecipe("huggingface:owner/name")
  monkeypatch.setattr(load, "_mask_recipes", lambda *args, **options: (recipe,))
  Image.fromarray(photo(0)).save(tmp_path / "a.png")
  command = ["--checkpoint", str(finished_run), "--image", str(tmp_path / "a.png")]
  command += ["--text", "red", "--out", str(tmp_path / "o.png")]
  with pytest.raises(
    InputError, match=r"masks from huggingface:owner/name: .*pip install.*--instances .*or to none"
  ) as caught:
    predict.main(command)
  assert "\n" not in str(caught.value) and not (tmp_path / "o.png").exists()
  predict.main([*command, "--instances", "none"])
  assert (tmp_path / "o.png").exists()


def test_a_model_of_drawn_scenes_says_so_once(model, counting, capsys):
  segmenter = Segmenter(model)
  for k in range(2):
    assert len(segmenter(photo(k), "red").instances) == 2
  said = capsys.readouterr().err
  assert said.count("the model knows drawn scenes only; felzenszwalb proposes") == 1


def test_without_a_proposer_a_model_of_drawn_scenes_answers_and_says_how(
  model, without_packages, capsys
):
  assert len(Segmenter(model)(photo(0), "red").instances) == 0
  said = capsys.readouterr().err
  assert "drawn scenes only; answered without instance masks" in said and "pip install" in said
  assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
  ("recipes", "uses_masks", "said"),
  [
    (None, True, "does not say how its instance masks were made"),
    ((), True, ""),
    ((MaskRecipe("none"),), True, ""),
    ((MaskRecipe("huggingface:a/b"),), False, ""),
  ],
)
def test_no_masks_are_made_where_training_had_none_or_does_not_tell(
  recipes, uses_masks, said, capsys
):
  instances = ImageInstances(AutoProposer(recipes, uses_masks))
  assert len(instances.find(AUTO, photo(0), None)) == 0
  printed = capsys.readouterr().err
  assert said in printed and bool(said) == bool(printed)


def test_the_first_proposer_of_a_mixture_that_works_is_used(counting, tmp_path):
  gone = MaskRecipe(f"onnx:{tmp_path}/gone.onnx", "0" * 16)
  scenes, file = MaskRecipe("shapes"), MaskRecipe("coco:a.json", "0" * 16)
  found = AutoProposer((scenes, file, gone, MaskRecipe(STUB)))()
  assert found.name == STUB and not found.looked_up
  with pytest.raises(InputError, match=r"masks from onnx:\S+gone\.onnx: .* is not here"):
    AutoProposer((scenes, file, gone))()


def test_a_file_of_masks_has_those_of_its_own_images(tmp_path):
  square = [[2, 3, 12, 3, 12, 13, 2, 13]]
  image = {"id": 1, "file_name": "a_1.jpg", "height": 40, "width": 60}
  row = {"id": 1, "image_id": 1, "segmentation": square}
  path = tmp_path / "masks.json"
  path.write_text(json.dumps({"images": [image], "annotations": [row]}))
  recipe = mask_recipe.of_spec(f"coco:{path}", Selection())
  instances = ImageInstances(AutoProposer((recipe,)))
  assert instances.find(AUTO, photo(0), "x/a_1.jpg")[0].sum() == 100
  for other in ("x/b.jpg", None):
    with pytest.raises(registry.UnknownImage, match=r"none of this image .*--instances"):
      instances.find(AUTO, photo(0), other)
  assert instances.find_auto(photo(0)) == (None, "")
  path.write_text(path.read_text() + " ")
  with pytest.raises(InputError, match="is another file here"):
    AutoProposer((recipe,))()


def test_a_class_that_a_checkpoint_names_is_not_imported(tmp_path):
  recipe = MaskRecipe(f"os.system:touch {tmp_path}/ran")
  with pytest.raises(InputError, match="imported only if you name it"):
    AutoProposer((recipe,))()
  assert not (tmp_path / "ran").exists()


def test_a_run_and_its_export_keep_how_masks_were_made(finished_run, exported):
  checkpoints = Checkpoints(str(finished_run), read_only=True)
  kept = checkpoints.meta(checkpoints.select("last"))["data"][mask_recipe.KEY]
  checkpoints.close()
  assert mask_recipe.all_from_json(kept, "it") == (MaskRecipe("shapes"),)
  about = json.loads((exported / "config.json").read_text())
  assert mask_recipe.all_from_json(about[mask_recipe.KEY], "it") == (MaskRecipe("shapes"),)
  assert load.load(str(exported)).mask_recipes == (MaskRecipe("shapes"),)
  assert load.load(load.DEMO).mask_recipes == (MaskRecipe("shapes"),)


def test_prepared_data_keeps_how_masks_were_made(counting, tmp_path):
  example = tmp_path / "example"
  custom_command.main(["example", "--out", str(example), "--train", "1", "--val", "1"])
  data_dir = str(tmp_path / "data")
  prepare.main([
    *("--dataset", f"jsonl:{example / 'mine.jsonl'}", "--data_dir", data_dir),
    *("--instances", STUB, "--max_instances", "5", "--rank", "given"),
  ])  # fmt: skip
  expected = MaskRecipe(STUB, "", Selection(max_instances=5, rank="given"))
  assert mask_recipe.of_data_sets(data_dir, ["mine"]) == (expected,)
  metadata = storage.read_metadata(data_dir, "mine") or {}
  del metadata[mask_recipe.KEY]  # as data was prepared earlier
  earlier = mask_recipe.of_metadata(metadata, "mine")
  assert earlier is not None and earlier.spec == STUB


def test_results_of_propose_have_the_recipe_of_their_proposer(tmp_path):
  selection = {"max_instances": 30, "min_area": 0.001, "nms_iou": 0.8, "rank": "distinct"}
  options = {"instances": "onnx:weights/m.onnx (sha256 0123456789abcdef)", **selection}
  path = tmp_path / "proposals.json"
  path.write_text('{"info": ' + json.dumps({"options": options}) + ',\n"images": []}')
  found = mask_recipe.of_spec(f"results:{path}", Selection(max_instances=12, rank="given"))
  kept = Selection(max_instances=12, min_area=0.001, nms_iou=0.8, rank="distinct")
  assert found == MaskRecipe("onnx:weights/m.onnx", "0123456789abcdef", kept)
  path.write_text("[]")  # of another tool
  found = mask_recipe.of_spec(f"results:{path}", Selection())
  assert found == MaskRecipe(f"results:{path}", fingerprint.of_file(path))


def test_an_exported_recipe_names_no_folder_of_this_machine(tmp_path):
  (tmp_path / "model.onnx").write_bytes(b"weights")
  recipe = mask_recipe.of_spec(f"onnx:{tmp_path / 'model.onnx'}", Selection())
  assert recipe.argument == str(tmp_path / "model.onnx")
  assert recipe.portable().spec == "onnx:model.onnx"
  assert mask_recipe.from_json(json.loads(json.dumps(recipe.to_json())), "it") == recipe
  for kept in ("huggingface:owner/name", "felzenszwalb:100,300", "none"):
    assert MaskRecipe(kept).portable().spec == kept


@pytest.mark.parametrize(
  "data",
  [
    None,
    3,
    {"spec": "none"},
    {"spec": 1, "content": "", "selection": Selection().__dict__},
    {"spec": "a\nb", "content": "", "selection": Selection().__dict__},
    {"spec": "none", "content": "", "selection": Selection().__dict__ | {"rank": "worst"}},
    {"spec": "none", "content": "", "selection": Selection().__dict__ | {"nms_iou": 3}},
    {"spec": "none", "content": "", "selection": Selection().__dict__ | {"max_instances": 1e999}},
  ],
)
def test_what_is_no_recipe_is_refused(data):
  with pytest.raises(InputError, match=r"config\.json: how its instance masks were made"):
    mask_recipe.from_json(data, "config.json")


def test_the_cache_stays_small_and_right(counting):
  proposer = registry.SelectingProposer(Counting(), Selection())
  cache = ProposalCache(max_bytes=100)
  for k in [*range(20), *range(20)]:
    found = cache.propose(proposer, proposer, photo(k))
    expected = proposer.propose([photo(k)], [0])[0]
    np.testing.assert_array_equal(found.masks, expected.masks)
    assert len(cache._entries) <= 8
  assert cache._bytes == sum(entry.bits.nbytes for entry in cache._entries.values())


def test_the_weights_of_a_model_on_the_hub_are_not_downloaded_unasked(tmp_path):
  pytest.importorskip("torch")
  pytest.importorskip("transformers")
  from input_pipeline.proposers import huggingface

  assert huggingface.HuggingFaceProposer.missing(str(tmp_path)) == ""
  line = huggingface.HuggingFaceProposer.missing("nobody/nothing-of-this-name")
  assert "--instances huggingface:nobody/nothing-of-this-name downloads them" in line
  with pytest.raises(InputError, match="not on this machine"):
    AutoProposer((MaskRecipe("huggingface:nobody/nothing-of-this-name"),))()


def test_files_are_named_by_their_content(tmp_path: pathlib.Path):
  """A folder of weights is known by its config."""
  (tmp_path / "config.json").write_text("{}")
  recipe = mask_recipe.of_spec(f"huggingface:{tmp_path}", Selection())
  assert recipe.content == fingerprint.of_file(tmp_path / "config.json")
  assert recipe.portable().spec == f"huggingface:{tmp_path.name}"
