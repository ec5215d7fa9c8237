"""Segments what an expression refers to in a photo, with the model in this folder:

python run_stablehlo.py photo.jpg "the leftmost star" mask.png [MASKS]

MASKS are instance masks, best first: a file masks.npy, or image files a.png b.png ...
"""

import json
import pathlib
import sys

import jax
import jax.export
import safetensors.numpy
from mail_preprocess.preprocess import mask_from_logits, open_image, read_masks  # pyright: ignore
from mail_preprocess.preprocess.model_inputs import prepare  # pyright: ignore
from mail_preprocess.preprocess.tokenizer import from_file_bytes  # pyright: ignore
from PIL import Image

here = pathlib.Path(__file__).resolve().parent
about = json.loads((here / "config.json").read_text())
photo, expression, out, *mask_files = sys.argv[1:]

pixels = open_image(photo)
height, width = pixels.shape[:2]
masks = read_masks(mask_files, height, width)
vocabulary = here / about["tokenizer"]["file"]
tokenizer = from_file_bytes(about["tokenizer"]["kind"], vocabulary.read_bytes(), vocabulary.name)
inputs, _ = prepare(pixels, [expression], masks, tokenizer, **about["inputs"])

model = jax.export.deserialize(bytearray((here / "model.stablehlo").read_bytes()))
arguments = [inputs[n] for n in ("image", "instances", "num_instances", "tokens", "num_tokens")]
weights = here / "model.stablehlo.data"
if weights.is_file():  # too large for the program: its first argument
  arrays = safetensors.numpy.load_file(weights)
  arguments = [*(arrays[path] for path in sorted(arrays, key=lambda p: p.split("/"))), *arguments]
arguments, _ = jax.tree.unflatten(model.in_tree, arguments)
outputs = jax.device_get(model.call(*arguments))

mask = mask_from_logits(outputs["logits"][0], height, width, outputs.get("no_target", [None])[0])
Image.fromarray(mask).convert("L").save(out)  # white: the referent
best = outputs["selection_logits"][0].argmax()
selected = f"instance {best + 1}" if best < inputs["num_instances"][0] else "no instance"
count = inputs["num_instances"][0]
print(f"{out}: {mask.mean():.1%} of the photo; {selected} of {count} selected")
