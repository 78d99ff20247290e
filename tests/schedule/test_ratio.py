"""One unit inside, two at the edge; what could mean either is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitprune.errors import FitPruneError
from fitprune.schedule.ratio import parse_ratio


@pytest.mark.parametrize(
    ("value", "fraction"),
    [(0, 0), (0.6, 0.6), (60, 0.6), ("60", 0.6), ("0.6", 0.6), (" 60% ", 0.6), ("0.5%", 0.005), (2, 0.02), ("99.9", 0.999)],
)
def test_fractions_and_percentages(value, fraction):
    assert parse_ratio(value) == pytest.approx(fraction, abs=1e-15)


@pytest.mark.parametrize("value", [1, 1.7, 100, 250, -0.1, "-5", "100%", "sixty", "", "nan", "inf", None])
def test_refuses_what_it_cannot_mean(value):
    with pytest.raises(FitPruneError, match="reduction ratio") as error:
        parse_ratio(value)
    assert "\n" not in str(error.value)


@given(st.integers(2, 99))
def test_both_units_agree(percent):
    assert parse_ratio(percent) == parse_ratio(str(percent)) == parse_ratio(f"{percent}%") == percent / 100
