"""Two settings without an option in TFDS: bounded memory, and the same bytes in every run.

They replace attributes of TFDS for the whole process: `split_builder` constructs its shuffler and
serializer itself, and takes neither as an argument.
"""

from tensorflow_datasets.core import example_serializer, shuffle

# TFDS keeps a split in memory up to 1 GB, then in a thousand files. With files from the start, the
# records and their order are the same.
_BUFFER_BYTES, _BUCKETS = 32 << 20, 256


def apply() -> None:
  """Applies the settings; must be called in every process that writes records."""
  shuffle.MAX_MEM_BUFFER_SIZE, shuffle.BUCKETS_NUMBER = _BUFFER_BYTES, _BUCKETS
  example_serializer.ExampleSerializer.serialize_example = _serialize


def _serialize(self: example_serializer.ExampleSerializer, example) -> bytes:
  """Serialises as TFDS does, but in a fixed order: protocol buffers' maps have none."""
  return self.get_tf_example(example).SerializeToString(deterministic=True)
