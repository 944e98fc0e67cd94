"""Options of sampling: each does what it says, and wrong values are refused."""

from __future__ import annotations

import decimal
from typing import Any

import numpy as np
import pytest

from tarsdb.errors import ModelError
from tarsdb.model_ops.generation.generation_options import GenerationOptions
from tarsdb.model_ops.generation.prompt_lookup import PromptLookup
from tarsdb.model_ops.generation.sampling import SamplingOptions, choose, uniform

LOGITS = np.log(np.array([0.4, 0.3, 0.2, 0.05, 0.05], np.float32))


def drawn(count: int = 4000, seen: tuple[int, ...] = (), **options: Any) -> np.ndarray:
    """Return how often each token is drawn."""
    chosen = SamplingOptions(**{"temperature": 1.0, **options})
    tokens = [choose(LOGITS, chosen, uniform(1, i), seen) for i in range(count)]
    return np.bincount(tokens, minlength=5) / count


def test_greedy_takes_the_largest_the_first_of_equal_ones() -> None:
    assert choose(LOGITS, SamplingOptions(), 0.99, ()) == 0
    assert choose(np.array([1, 3, 3], np.float32), SamplingOptions(), 0.99, ()) == 1


def test_temperature_one_draws_from_the_distribution() -> None:
    np.testing.assert_allclose(drawn(), np.exp(LOGITS), atol=0.03)


def test_temperature_sharpens_and_flattens() -> None:
    powers = np.exp(LOGITS / 0.5)
    np.testing.assert_allclose(drawn(temperature=0.5), powers / powers.sum(), atol=0.03)
    assert drawn(temperature=0.05)[0] > 0.99
    assert drawn(temperature=100.0).min() > 0.15
    for coldest in (1e-150, 1e-199, 1e-300, 5e-324):
        assert drawn(100, temperature=coldest, logit_bias={0: 1e6, 1: 1e6})[0] == 1


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"top_k": 2}, 2), ({"top_k": 1}, 1), ({"top_k": 99}, 5), ({"top_p": 0.39}, 1),
        ({"top_p": 0.41}, 2), ({"top_p": 0.0}, 1), ({"min_p": 0.45}, 3), ({"min_p": 1.0}, 1),
        ({"top_p": 0.85, "top_k": 2}, 2), ({"min_p": 0.6, "top_p": 0.95}, 2),
    ],
)  # fmt: skip
def test_truncation_keeps_the_most_probable(options: dict[str, float], kept: int) -> None:
    wanted = np.exp(LOGITS)
    wanted[kept:] = 0
    np.testing.assert_allclose(drawn(**options), wanted / wanted.sum(), atol=0.03)


def test_repetition_penalty_lowers_what_was_seen() -> None:
    logits = np.array([2.0, 1.5, -1.0, -1.5], np.float32)
    penalised = SamplingOptions(repetition_penalty=2.0)
    assert choose(logits, penalised, 0, (0, 0, 3)) == 1
    assert choose(-logits[::-1].copy(), penalised, 0, ()) == 0
    assert choose(np.array([-1.0, -1.5], np.float32), penalised, 0, (0,)) == 1


def test_bias_adds_to_logits() -> None:
    assert choose(LOGITS, SamplingOptions(logit_bias={4: 5.0}), 0, ()) == 4
    assert choose(LOGITS, SamplingOptions(logit_bias='{"4": 5}'), 0, ()) == 4
    assert drawn(logit_bias={0: -1e6})[0] == 0
    with pytest.raises(ModelError, match="token 9, the model has 5"):
        choose(LOGITS, SamplingOptions(logit_bias={9: 1.0}), 0, ())


def test_only_allowed_tokens_are_chosen() -> None:
    allowed = np.array([False, False, True, True, False])
    assert choose(LOGITS, SamplingOptions(), 0, (), allowed) == 2
    tokens = {
        choose(LOGITS, SamplingOptions(temperature=1.0), uniform(3, i), (), allowed)
        for i in range(200)
    }
    assert tokens == {2, 3}


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_no_numbers_are_refused(bad: float) -> None:
    logits = LOGITS.copy()
    logits[3] = bad
    with pytest.raises(ModelError, match="token 3 are"):
        choose(logits, SamplingOptions(), 0, ())


def test_uniform_numbers_are_even_and_depend_on_seed_and_position() -> None:
    numbers = np.array([uniform(7, i) for i in range(10_000)])
    assert numbers.min() >= 0
    assert numbers.max() < 1
    np.testing.assert_allclose(np.histogram(numbers, 10, (0, 1))[0], 1000, atol=130)
    assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 0.05
    assert uniform(7, 3) != uniform(8, 3)
    assert uniform(-1, 3) == uniform(-1, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": 0}, "max_tokens 0 is not a whole number"),
        ({"max_tokens": 1.5}, "max_tokens 1.5 is not a whole number"),
        ({"max_tokens": True}, "max_tokens True"),
        ({"temperature": -1}, "temperature -1 is not a number of 0..100"),
        ({"temperature": float("nan")}, "temperature nan"),
        ({"temperature": "hot"}, "temperature 'hot'"),
        ({"top_p": 1.5}, "top_p 1.5"),
        ({"min_p": -0.1}, "min_p -0.1"),
        ({"top_k": -1}, "top_k -1"),
        ({"repetition_penalty": 0}, "repetition_penalty 0"),
        ({"stop": ""}, "stop ''"),
        ({"stop": [1]}, "stop "),
        ({"stop": ["a"] * 17}, "stop "),
        ({"seed": 0.5}, "seed 0.5"),
        ({"logit_bias": [1]}, "logit_bias"),
        ({"logit_bias": "{"}, "logit_bias '{'"),
        ({"logit_bias": {"x": 1}}, "a token of logit_bias 'x'"),
        ({"logit_bias": {1: "x"}}, "a value of logit_bias 'x'"),
        ({"chat": "yes"}, "chat 'yes' is neither"),
        ({"system": 3}, "system 3 is no text"),
        ({"priority": 0.5}, "priority 0.5"),
        ({"timeout": -1}, "timeout -1"),
        ({"beam": 4}, "option 'beam' is not known"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        GenerationOptions.from_mapping(options)


def test_options_take_what_sql_gives() -> None:
    options = GenerationOptions.from_mapping(
        {"temperature": decimal.Decimal("0.7"), "stop": "end", "seed": None, "top_k": np.int64(3)}
    )
    assert (options.sampling.temperature, options.sampling.top_k) == (0.7, 3)
    assert options.sampling.stop == ("end",)
    assert options.sampling.seed is None


def test_lookup_proposes_what_followed_before() -> None:
    lookup = PromptLookup()
    assert lookup.drafts([1, 2, 3, 4, 5, 9, 1, 2, 3], 8) == [4, 5, 9, 1]
    assert lookup.drafts([1, 2, 3, 4, 5, 9, 1, 2, 3, 4], 2) == [5, 9]
    assert lookup.drafts([1, 2, 3, 4, 5, 9, 1, 2, 3, 4, 7], 8) == []


def test_lookup_guesses_more_when_right_and_less_when_wrong() -> None:
    text = [1, 2, 3, *range(10, 30), 1, 2, 3]
    lookup = PromptLookup()
    assert len(lookup.drafts(text, 99)) == 4
    lookup.learn(4, 4)
    assert len(lookup.drafts(text, 99)) == 8
    for _ in range(4):
        lookup.learn(8, 0)
    assert len(lookup.drafts(text, 99)) == 1
