"""A mask for a photo and a sentence, by the model beside this file:

python run_stablehlo.py photo.jpg "the leftmost star" mask.png [masks.npy, or a.png b.png ...: instances, best first]
"""

import json
import pathlib
import sys

import jax
import jax.export
from PIL import Image
from preprocessing import ModelTokenizer, mask_from_logits, open_image, prepare, read_masks  # pyright: ignore

here = pathlib.Path(__file__).resolve().parent
about = json.loads((here / "config.json").read_text())
photo, text, out, *mask_files = sys.argv[1:]

pixels = open_image(photo)
height, width = pixels.shape[:2]
masks = read_masks(mask_files, height, width)
tokenizer = ModelTokenizer((here / about["tokenizer"]["file"]).read_bytes())
inputs, _ = prepare(pixels, [text], masks, tokenizer, **about["inputs"])

model = jax.export.deserialize(bytearray((here / "model.stablehlo").read_bytes()))
order = ("image", "instances", "num_instances", "tokens", "num_tokens")
outputs = jax.device_get(model.call(*(inputs[name] for name in order)))

mask = mask_from_logits(outputs["logits"][0], height, width, outputs.get("no_target", [None])[0])
Image.fromarray(mask).convert("L").save(out)  # white where the referent is
best = outputs["selection_logits"][0].argmax()
chosen = f"instance {best + 1}" if best < inputs["num_instances"][0] else "no instance"
print(f"{out}: {mask.mean():.1%} of the photo; {chosen} of {inputs['num_instances'][0]} chosen")
