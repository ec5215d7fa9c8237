"""Untrusted pickles: plain data as Python's unpickler reads it; all else is refused."""

import itertools
import pathlib
import pickle
import pickletools
import subprocess

import numpy as np
import own_process
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from input_pipeline.common import untrusted_pickle
from input_pipeline.common.errors import InputError

_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=300)
_leaves = st.one_of(
  st.none(), st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False), _text
)
_plain = st.recursive(
  _leaves,
  lambda inner: st.one_of(
    st.lists(inner, max_size=5),
    st.dictionaries(st.one_of(_text, st.integers(-9, 9)), inner, max_size=5),
  ),
  max_leaves=30,
)


@settings(max_examples=300, deadline=None)
@given(_plain, st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_plain_data_survives_any_protocol(value, protocol):
  actual = untrusted_pickle.loads(pickle.dumps(value, protocol), "refs")
  assert actual == value and repr(actual) == repr(value)


def test_real_refs_are_what_python_reads(realdata):
  paths = sorted(realdata.glob("refer/*/refs*.p"))
  assert len(paths) >= 4
  for path in paths:
    with path.open("rb") as file:
      assert untrusted_pickle.load(str(path)) == pickle.load(file, encoding="utf-8")


@settings(max_examples=500, deadline=None)
@given(_plain, st.integers(0, 4), st.data())
def test_a_damaged_pickle_is_plain_data_or_an_input_error(value, protocol, data):
  content = bytearray(pickle.dumps(value, protocol))
  for _ in range(data.draw(st.integers(1, 3))):
    content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
  content = bytes(content)[: data.draw(st.integers(0, len(content)))]
  try:
    actual = untrusted_pickle.loads(content, "refs")
  except InputError as error:
    assert "not a pickle of plain lists" in str(error)
  else:
    _check_plain(actual)


def _check_plain(value):
  assert type(value) in (list, dict, str, bytes, int, float, bool, type(None))
  inner = value.values() if isinstance(value, dict) else value
  for item in inner if isinstance(value, list | dict) else ():
    _check_plain(item)


def _as_lists(value):
  """Returns the value with lists for tuples, made independently of the code under test."""
  if isinstance(value, dict):
    return {key: _as_lists(item) for key, item in value.items()}
  return [_as_lists(item) for item in value] if isinstance(value, list | tuple) else value


_with_tuples = st.recursive(
  _leaves,
  lambda inner: st.one_of(
    st.lists(inner, max_size=5).map(tuple),
    st.lists(inner, max_size=3),
    st.dictionaries(_text, inner, max_size=3),
  ),
  max_leaves=30,
)


@settings(max_examples=200, deadline=None)
@given(_with_tuples, st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_tuples_are_read_as_lists(value, protocol):
  actual = untrusted_pickle.loads(pickle.dumps(value, protocol), "refs")
  assert actual == _as_lists(value)


_scalars = st.one_of(
  st.sampled_from([np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint64]).flatmap(
    lambda kind: st.integers(np.iinfo(kind).min, np.iinfo(kind).max).map(kind)
  ),
  st.sampled_from([np.float16, np.float32, np.float64]).flatmap(
    lambda kind: st.floats(-60000, 60000).map(kind)
  ),
  st.booleans().map(np.bool_),
  st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1).map(
    np.str_
  ),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(_scalars, max_size=5), st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_scalars_of_numpy_are_the_numbers_that_numpy_reads(values, protocol):
  content = pickle.dumps({"ids": values, "first": tuple(values[:1])}, protocol)
  actual = untrusted_pickle.loads(content, "refs")
  expected = [value.item() if isinstance(value, np.generic) else value for value in values]
  assert actual == {"ids": expected, "first": expected[:1]}
  assert [type(value) for value in actual["ids"]] == [type(value) for value in expected]


@pytest.mark.parametrize("module", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
def test_scalars_of_either_byte_order_and_of_numpy_1_are_read(module):
  for order in (b"<", b">"):
    number = (300).to_bytes(8, "little" if order == b"<" else "big")
    content = (
      b"\x80\x02c" + module + b"\nscalar\ncnumpy\ndtype\nU\x02i8\x89\x88\x87R(K\x03U\x01" + order
      + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tbU\x08" + number + b"\x86R."
    )  # fmt: skip
    assert untrusted_pickle.loads(content, "refs") == 300


@pytest.mark.parametrize(
  ("value", "reason"),
  [
    (np.arange(3), r"refers to numpy\._core\.multiarray\._reconstruct"),
    (np.datetime64("2020-01-01"), r"a NumPy scalar of the type 'M8'"),
    (np.dtype("f8"), r"contains an unused reference to a function"),
    (itertools.count, r"refers to itertools\.count"),
    (frozenset([1]), r"it (contains the instruction|refers to)"),
  ],
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_what_is_not_plain_is_refused_with_what_it_is(value, reason, protocol):
  with pytest.raises(InputError, match=reason) as caught:
    untrusted_pickle.loads(pickle.dumps([value], protocol), "data/refs(unc).p")
  told = "replace it with refs(unc).json" in str(caught.value)
  assert told == isinstance(value, np.ndarray | np.datetime64)


# Everything that could call something else than a NumPy scalar's names; and sets.
_REFUSED = [
  opcode
  for opcode in pickletools.opcodes
  if opcode.name.startswith(
    ("INST", "OBJ", "NEWOBJ", "EXT", "PERSID", "BINPERSID", "EMPTY_SET", "ADDITEMS", "FROZENSET",
     "BYTEARRAY8", "NEXT_BUFFER", "READONLY_BUFFER")
  )
]  # fmt: skip


@pytest.mark.parametrize("opcode", _REFUSED, ids=lambda op: op.name)
def test_instructions_that_could_call_something_are_refused_by_name(opcode):
  content = b"]]" + opcode.code.encode("latin-1") + b"posix\nsystem\n" + b"\0" * 9 + b"."
  with pytest.raises(InputError, match=f"it contains the instruction {opcode.name}"):
    untrusted_pickle.loads(content, "refs")


_ALLOWED = ("numpy dtype", "numpy.core.multiarray scalar", "_codecs encode")
_words = st.text(st.characters(codec="ascii", exclude_characters="\n\r"), max_size=12)


@given(st.one_of(st.sampled_from(["posix system", "builtins eval", "numpy load", "numpy ", " "]),
                 st.tuples(_words, _words).map(" ".join)), st.booleans())  # fmt: skip
def test_any_other_name_is_refused(name, on_stack):
  module, _, attribute = name.partition(" ")
  assert name not in _ALLOWED
  content = f"c{module}\n{attribute}\n(t\x52.".encode("latin-1")
  if on_stack:
    parts = (b"\x8c" + bytes([len(part)]) + part.encode() for part in (module, attribute))
    content = b"\x80\x04" + b"".join(parts) + b"\x93)R."
  with pytest.raises(InputError, match="it refers to"):
    untrusted_pickle.loads(content, "refs")


@pytest.mark.parametrize(
  "content",
  [
    b"]]R.",  # calls a list
    b"cnumpy\ndtype\n]b.",  # sets the state of a name
    b"cnumpy\ndtype\n.",  # is a name
    b"]cnumpy\ndtype\na.",
    b"}Ncnumpy\ndtype\ns.",
    b"}cnumpy\ndtype\nNs.",
    b"c_codecs\nencode\n(Vabc\nVrot13\ntR.",
    b"c_codecs\nencode\n(I1\nVlatin1\ntR.",
    b"cnumpy\ndtype\n(VO8\ntR.",
    b"cnumpy\ndtype\n(VU9999999\ntR.",
    b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(Vi8\ntRVab\ntR.",  # two bytes of eight
    b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\nVabcdefgh\ntR.",
    b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(Vi8\ntRI8\ntR.",
  ],
)
def test_names_make_nothing_but_scalars(content):
  with pytest.raises(InputError, match="nothing in it was executed"):
    untrusted_pickle.loads(content, "refs")


class _Command:
  def __init__(self, marker: pathlib.Path):
    self.marker = marker

  def __reduce__(self):
    return subprocess.check_call, (["touch", str(self.marker)],)


def test_a_command_in_a_pickle_does_not_run(tmp_path):
  marker, path = tmp_path / "marker", tmp_path / "refs(unc).p"
  for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
    path.write_bytes(pickle.dumps([{"ref_id": 1, "file_name": _Command(marker)}], protocol))
    with pytest.raises(InputError, match="nothing in it was executed"):
      untrusted_pickle.load(str(path))
  assert not marker.exists()
  pickle.loads(path.read_bytes())  # Python itself runs it
  assert marker.exists()


def _laughs(kind: bytes) -> bytes:
  """Returns lists (tuples) of ten times the previous one: 10^100 in a kilobyte."""
  lines = b"".join(
    b"(" + b"h" + bytes([i]) + (b"h" + bytes([i])) * 9 + kind + b"q" + bytes([i + 1])
    for i in range(40)
  )
  return b"\x80\x02]q\x00" + lines + b"."


# Each of these would take all memory, forever, or the C stack.
BOMBS = {
  "laughs_of_lists": _laughs(b"l"),
  "laughs_of_tuples": _laughs(b"t"),
  "laughs_as_a_key": b"\x80\x02}" + _laughs(b"t")[2:-1] + b"Ns.",
  "memo_of_34_GB": b"\x80\x02]r\xff\xff\xff\x7f.",
  "memo_of_any_size": b"]p99999999999\n.",
  "itself": b"\x80\x02]q\x00h\x00a.",
  "itself_in_a_dict": b"\x80\x02}q\x00U\x01ah\x00s.",
  "deep": b"\x80\x02" + b"]" * 500 + b"a" * 499 + b".",
  "deep_tuples": b"\x80\x02)" + b"\x85" * 900 + b".",
  "long_of_2_GB": b"\x80\x02\x8b\xff\xff\xff\x7f1.",
  "long_of_many_digits": b"L" + b"9" * 900 + b"L\n.",
  "number_of_many_bytes": b"\x80\x02\x8a\xff" + b"\xff" * 254 + b"\x7f.",
  "text_of_4_GB": b"\x80\x02X\xff\xff\xff\xffabc.",
  "text_of_an_exabyte": b"\x80\x04\x8d" + b"\xff" * 7 + b"\x0fabc.",
  "bytes_of_an_exabyte": b"\x80\x05\x96" + b"\xff" * 7 + b"\x0fabc.",
  "negative_text": b"\x80\x02T\xff\xff\xff\xffabc.",
  "frame_of_an_exabyte": b"\x80\x04\x95" + b"\xff" * 7 + b"\x0f].",
  "marks": b"(" * 1000,
  "end_of_nothing": b".",
  "mark_in_the_way": b"](a.",
  "pop_of_nothing": b"\x80\x02a.",
  "half_a_pair": b"\x80\x02}(Nu.",
  "list_as_a_key": b"\x80\x02}]Ns.",
  "escape": b"S'\\x'\n.",
}

_REFUSE = """
import sys, time
from own_process import peak_kilobytes
from input_pipeline.common.errors import InputError
from input_pipeline.common import untrusted_pickle
for path in sys.argv[1:]:
  start = time.perf_counter()
  try:
    untrusted_pickle.load(path)
    refused = False
  except InputError:
    refused = True
  print(path, int(refused), time.perf_counter() - start, peak_kilobytes())
"""


def test_a_bomb_of_a_kilobyte_is_refused_in_a_second_and_200_mb(tmp_path):
  for name, content in BOMBS.items():
    assert len(content) <= 1200
    (tmp_path / name).write_bytes(content)
  paths = [str(tmp_path / name) for name in BOMBS]
  rows = [line.split() for line in own_process.run(_REFUSE, *paths).splitlines()]
  assert len(rows) == len(BOMBS)
  for path, refused, seconds, kilobytes in rows:
    # A memo is a dict here: its highest slot costs nothing.
    assert int(refused) == (not pathlib.Path(path).name.startswith("memo")), path
    assert float(seconds) < 1 and int(kilobytes) < 200_000, path


def test_files_beyond_the_limits_are_refused(tmp_path, monkeypatch):
  path = tmp_path / "refs(unc).p"
  monkeypatch.setattr(untrusted_pickle, "MAX_CONTAINERS", 1000)
  path.write_bytes(b"(" + b"}" * 1001 + b"l.")
  with pytest.raises(InputError, match="more than 1,000 lists and dicts"):
    untrusted_pickle.load(str(path))
  monkeypatch.setattr(untrusted_pickle, "MAX_BYTES", 100)
  with pytest.raises(InputError, match=r"refs\(unc\)\.p: 1,004 bytes; the limit is 100"):
    untrusted_pickle.load(str(path))


def test_lists_that_are_there_twice_are_no_bomb():
  tokens = ["left", "cup"]
  refs = [{"tokens": tokens, "again": tokens} for _ in range(100)]
  for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
    assert untrusted_pickle.loads(pickle.dumps(refs, protocol), "refs") == refs


@pytest.mark.parametrize("depth", [20, 21])
def test_nesting_is_read_up_to_the_limit(depth):
  value: list = []
  for _ in range(depth - 1):
    value = [value]
  content = pickle.dumps(value, 2)
  if depth == 20:
    assert untrusted_pickle.loads(content, "refs") == value
  else:
    with pytest.raises(InputError, match="nested deeper than 20"):
      untrusted_pickle.loads(content, "refs")
