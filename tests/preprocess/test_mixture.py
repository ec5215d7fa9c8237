"""Mixtures as text: what is understood, what is refused, and what is evaluated."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from input_pipeline import mixture
from input_pipeline.common.errors import InputError
from input_pipeline.mixture import Part


def test_names_weights_and_options_are_read():
  assert mixture.parse("refcoco+_unc") == (Part("refcoco+_unc"),)
  assert mixture.parse("a:2, b:0.5,c:1/3:multi:no_target") == (
    Part("a", Fraction(2)),
    Part("b", Fraction(1, 2)),
    Part("c", Fraction(1, 3), frozenset({"multi", "no_target"})),
  )
  assert mixture.parse("a,b:multi")[1] == Part("b", None, frozenset({"multi"}))
  assert mixture.several("a") == () and len(mixture.several("a,b")) == 2


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("a,,b", "a name is missing"),
    (":2,b:1", "a name is missing"),
    ("a:0,b:1", "the weight of a is not a number above 0"),
    ("a:-1,b:1", "the weight of a"),
    ("a:nan,b:1", "the weight of a"),
    ("a:1/0,b:1", "the weight of a"),
    ("a:2:several,b:1", "'several' of a is not one of multi, no_target"),
    ("a:2,a:1", "a comes twice"),
    ("a:2,b", "give all data sets a weight, or none"),
  ],
)
def test_what_is_no_mixture_is_refused_in_one_line(text, message):
  with pytest.raises(InputError, match=message) as caught:
    mixture.parse(text)
  assert str(caught.value).startswith("config.dataset '") and "\n" not in str(caught.value)


@given(
  st.lists(st.fractions(Fraction(1, 40), 50, max_denominator=40), min_size=1, max_size=5),
)
def test_weights_are_the_smallest_integers_in_proportion(given_weights):
  text = ",".join(f"d{n}:{weight}" for n, weight in enumerate(given_weights))
  weights = mixture.weights(mixture.parse(text), [7] * len(given_weights), 1.0)
  total = sum(given_weights)
  assert [Fraction(w, sum(weights)) for w in weights] == [w / total for w in given_weights]
  assert not any(all(w % divisor == 0 for w in weights) for divisor in (2, 3, 5, 7))


def test_without_weights_data_sets_come_by_size():
  parts, sizes = mixture.parse("a,b,c"), (100, 10_000, 400)
  assert mixture.weights(parts, sizes, 1.0) == sizes
  roots = mixture.weights(parts, sizes, 2.0)
  assert [weight / roots[0] for weight in roots] == pytest.approx([1, 10, 2], rel=1e-4)
  equal = mixture.weights(parts, sizes, float("inf"))
  assert equal[0] == equal[1] == equal[2]


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_a_temperature_that_cannot_be_is_refused(temperature):
  with pytest.raises(InputError, match=r"config\.mixture_temperature is .* must be above 0"):
    mixture.weights(mixture.parse("a,b"), (1, 2), temperature)
  with pytest.raises(InputError, match=r"but config\.dataset has weights"):
    mixture.weights(mixture.parse("a:1,b:2"), (1, 2), 2.0)


def test_a_split_is_that_of_every_data_set_of_a_mixture():
  assert mixture.evaluated("a", "val") == {"val": "a/val"}
  assert mixture.evaluated("a", "val, b/test") == {"val": "a/val", "b/test": "b/test"}
  assert mixture.evaluated("a", "") == {}
  both = mixture.evaluated("a:2,b:1", "val")
  assert both == {"a/val": "a/val", "b/val": "b/val"}
  assert mixture.evaluated("a:2,b:1", "b/val") == {"b/val": "b/val"}
  assert mixture.judged(both) == "mean"
  assert mixture.judged({"val": "a/val"}) == "val" and mixture.judged({}) == ""
  with pytest.raises(InputError, match=r"config\.eval_split 'a/': write SPLIT or DATASET/SPLIT"):
    mixture.evaluated("a", "a/")
