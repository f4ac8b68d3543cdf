"""Options of the backend that measures itself."""

import pytest

from soda_compile.errors import OptionError
from soda_compile.learning.wish import QUALITIES, take_wish
from soda_compile.plans.actions import COMPUTE
from soda_compile.plans.plan import Plan


@pytest.mark.parametrize(
    ("options", "numbers"),
    [
        ({"speedup": 2}, {"speedup": 2.0}),
        ({"max_error": 0.5}, {"max_error": 0.5}),
        ({"latency_ms": 30}, {"latency_ms": 30.0}),
        *(({"quality": word}, {"speedup": speedup}) for word, speedup in QUALITIES.items()),
    ],
)
def test_a_goal_is_taken_and_the_rest_is_the_backends(options, numbers):
    wish, rest = take_wish({**options, "mode": "default", "generations": 2})
    assert wish is not None
    assert wish.request.goal.numbers() == numbers
    assert wish.generations == 2
    assert rest == {"mode": "default"}


def test_without_a_goal_all_options_are_the_backends():
    assert take_wish({"mode": "default"}) == (None, {"mode": "default"})


PLAN = Plan("f", ("a",), ((COMPUTE, COMPUTE),))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (
            {"speedup": 2, "quality": "fast"},
            "exactly one of speedup, max_error, .*; got speedup, quality",
        ),
        ({"speedup": 2, "plan": PLAN}, "leave out plan"),
        ({"quality": "best"}, "quality is 'best'; it must be one of near-lossless, balanced, fast"),
        ({"speedup": "2"}, "speedup is '2'; it must be a number above 1"),
        ({"speedup": 1}, "speedup is 1; it must be a number above 1"),
        ({"max_error": 0}, "max_error is 0; it must be a number above 0"),
        ({"latency_ms": True}, "latency_ms is True"),
        ({"speedup": 2, "generations": 0}, "generations is 0; it must be a whole number, at least 1"),
        ({"speedup": 2, "max_interval": 1.5}, "max_interval is 1.5"),
        ({"speedup": 2, "background": 1}, "background is 1; it must be True or False"),
        ({"generations": 3}, "option 'generations' says how the backend measures, but not what for"),
    ],
)
def test_what_cannot_be_meant_is_named(options, named):
    with pytest.raises(OptionError, match=named.replace("(", r"\(")):
        take_wish(options)
