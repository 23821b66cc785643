"""The cost model of shards: what it says of time, of paid nodes and of where fanning out begins to pay."""

from pathlib import Path

import pytest

from benchmarks import fan_out
from benchmarks.fan_out import CostModel

MODEL = CostModel(fixed=6.0, rate=50.0, gather=0.5, pod=10.0, cold=60.0)


@pytest.mark.parametrize("shards", [2, 4, 8])
def test_shards_are_sooner_from_the_break_even_on(shards: int) -> None:
    pictures = MODEL.break_even(shards)
    assert MODEL.seconds(pictures + 50, shards) < MODEL.seconds(pictures + 50, 1)
    assert MODEL.seconds(pictures - 50, shards) > MODEL.seconds(pictures - 50, 1)


@pytest.mark.parametrize("shards", [2, 4, 8])
def test_nodes_are_paid_twice_at_the_number_told(shards: int) -> None:
    pictures = MODEL.twice_paid(shards)
    assert MODEL.paid(pictures, shards) == pytest.approx(2 * MODEL.paid(pictures, 1), rel=1e-3)


def test_many_pictures_on_many_shards_approach_the_number_of_shards() -> None:
    pictures = 10**8
    assert MODEL.seconds(pictures, 1) / MODEL.seconds(pictures, 8) == pytest.approx(8, rel=1e-2)
    assert MODEL.paid(pictures, 8) / MODEL.paid(pictures, 1) == pytest.approx(1, rel=1e-2)


def test_the_fit_gives_back_what_it_was_made_from() -> None:
    """Seconds of shards that cost 5 s and 0.02 s a picture are predicted exactly, whatever the least shard held."""
    pictures = 3000

    def shard(held: float) -> dict[str, float]:
        return {"wall": 5 + held / 50, "cpu": 9.0}

    measured = {
        "least": shard(pictures / 1024),
        "shards": {n: [shard(pictures / n)] * n for n in (1, 2, 4)},
        "gather": {n: {"wall": 0.5, "cpu": 0.4} for n in (1, 2, 4)},
    }
    model = fan_out.fit(measured, pictures, "wall", pod=10.0, cold=60.0)
    assert (model.fixed, model.rate, model.gather) == pytest.approx((5, 50, 0.5))
    rows = fan_out.compare(model, measured, pictures, "wall")
    assert [row["shards"] for row in rows] == [1, 2, 4]
    assert all(abs(row["error"]) < 1e-9 for row in rows)


def test_without_pictures_nothing_is_measured(tmp_path: Path, capsys) -> None:
    assert fan_out.main(["--data", str(tmp_path / "absent")]) == 0
    assert "skipped: the pictures are not there" in capsys.readouterr().out
