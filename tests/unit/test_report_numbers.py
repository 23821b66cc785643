"""Numbers and axes of the report: never more than was measured, always in order."""

from graftflow.report.charts import log_axis, percent_axis, power_of_ten, root_axis
from graftflow.report.numbers import decimal, interval, percent, percents_apart, plural
from tests.unit.report_artifacts import score


def test_numbers_never_claim_more_than_was_measured() -> None:
    assert percent(0.99996).replace("\N{NO-BREAK SPACE}", " ") == "> 99.9 %"
    assert percent(0.00001).replace("\N{NO-BREAK SPACE}", " ") == "< 0.1 %"
    assert percent(1).startswith("100\N{NO-BREAK SPACE}")
    assert percent(None) == decimal(None) == interval(score(0.5)) == "–"
    assert len(set(percents_apart(0.899999, 0.9))) == 2
    assert [decimal(x) for x in (0.5, 0.01234, 0.0)] == ["0.500", "0.012", "0.000"]
    assert [plural(n, "class")[2:] for n in (1, 2)] == ["class", "classes"]


def test_axes_hold_all_values_and_place_them_in_order() -> None:
    for axis, values in (
        (percent_axis("", [0.97, 0.9999], str), [0.97, 0.98, 1.0]),
        (percent_axis("", [1.0, 1.0], str), [0.99, 1.0]),
        (percent_axis("", [0.0, 1.0], str), [0.0, 0.5, 1.0]),
        (log_axis("", [0.0, 1e-5, 1.0], str), [1e-5, 0.01, 1.0]),
        (log_axis("", [0.3], str), [0.3]),
        (root_axis("", [0.5, 8.0], str), [0.0, 0.5, 8.0]),
    ):
        places = [axis.place(value) for value in values]
        assert places == sorted(places)
        assert len(set(places)) == len(values)
        assert 0 <= places[0] <= places[-1] <= 1
        assert axis.ticks
        assert all(0 <= axis.place(tick) <= 1 for tick in axis.ticks)
    assert log_axis("", [0.1, 1.0], str).place(0.0) == 0
    assert [power_of_ten(x) for x in (1e-5, 0.1, 1000.0, 0.25)] == ["10⁻⁵", "0.1", "10³", "0.25"]
