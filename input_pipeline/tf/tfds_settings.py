"""Two things that TFDS has no option for, set for the process: flat memory, and the same bytes on every run."""

from tensorflow_datasets.core import example_serializer, shuffle

# TFDS keeps a split in memory up to a GB, then in a thousand files. In files from the start the records and their
# order are the same.
_BUFFER_BYTES, _BUCKETS = 32 << 20, 256


def apply() -> None:
  """Sets them; to be called in every process that writes records."""
  shuffle.MAX_MEM_BUFFER_SIZE, shuffle.BUCKETS_NUMBER = _BUFFER_BYTES, _BUCKETS
  example_serializer.ExampleSerializer.serialize_example = _serialize


def _serialize(self: example_serializer.ExampleSerializer, example) -> bytes:
  """As TFDS does, but with the fields in one order: that of a protocol buffer's map is another one in each process."""
  return self.get_tf_example(example).SerializeToString(deterministic=True)
