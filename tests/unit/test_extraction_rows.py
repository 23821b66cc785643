"""The arithmetic of the extraction benchmark: the limit bounds, and an option is chosen only where features stay."""

import os

import pytest

from benchmarks.extraction import __main__ as extraction
from benchmarks.extraction import choices

CORES = os.cpu_count() or 1


def told(cpu_ms: float, wall_ms: float, pictures: int = 100) -> dict[str, float]:
    return {"pictures": pictures, "cpu": pictures * cpu_ms / 1e3, "wall": pictures * wall_ms / 1e3}


@pytest.fixture
def rounds() -> dict[str, list[dict[str, float]]]:
    """Decoding 3 ms, the better forward pass 15 ms: 18 ms a picture at least, of all cores together."""
    return {
        "decode": [told(3, 3)],
        "forward 16": [told(16, 8)],
        "forward 64": [told(15, 9, pictures=200)],
        "graftflow": [told(18, 18 / CORES)],
        "keras": [told(40, 40 / CORES)],
        "whole": [told(18, 30)],
    }


def test_the_limit_is_that_of_the_better_forward_pass(rounds) -> None:
    assert extraction.limits(rounds) == [pytest.approx(CORES / 0.018)]


def test_one_way_sets_the_limit_of_all_rounds(rounds) -> None:
    """A way that is cheaper in one round of three by chance is not mixed with the other."""
    several = {name: values * 3 for name, values in rounds.items()}
    several["forward 16"] = [told(16, 8), told(14, 8), told(16, 8)]
    assert extraction.limits(several) == [pytest.approx(CORES / 0.018)] * 3


def test_a_loop_without_waste_or_idle_cores_is_at_the_limit(rounds) -> None:
    first, whole = extraction.rows_of(rounds, ["torch + timm: missing"], "wall")
    assert first.ratio == pytest.approx(1)
    assert first.held is True
    assert first.times == {"keras.Model.predict": pytest.approx(40 / 18), "torch + timm": None}
    assert "torch + timm: missing" in first.note
    assert whole.graftflow == pytest.approx(3)
    assert whole.limit == pytest.approx(100 * 0.018 / CORES)


def test_an_idle_core_is_seen_by_the_wall_and_not_by_cpu_seconds(rounds) -> None:
    rounds["graftflow"] = [told(18, 36 / CORES)]
    assert extraction.rows_of(rounds, [], "wall")[0].ratio == pytest.approx(0.5)
    assert extraction.rows_of(rounds, [], "wall")[0].held is False
    assert extraction.rows_of(rounds, [], "cpu")[0].ratio == pytest.approx(1)


def test_a_faster_peer_misses_the_goal(rounds) -> None:
    rounds["keras"] = [told(17, 17 / CORES)]
    assert extraction.rows_of(rounds, [], "wall")[0].held is False


@pytest.mark.parametrize(
    ("times", "by_wall", "difference", "said"),
    [
        (1.3, 1.3, 0.09, "changes features by 9.0e-02 of the largest, more than 0.001"),
        (1.3, 1.25, 1e-6, "1.25 times as fast: choose it"),
        (1.02, 1.3, 0.0, "no faster beyond 5 % by both clocks"),
        (1.3, 1.02, 0.0, "no faster beyond 5 % by both clocks"),
        (0.5, 0.5, 0.0, "slower"),
        (1.06, 0.6, 0.0, "slower"),  # as one thread is
    ],
)
def test_an_option_is_chosen_only_where_features_stay_and_both_clocks_agree(
    times: float, by_wall: float, difference: float, said: str
) -> None:
    assert choices.why("bfloat16", times, by_wall, difference) == said


def test_the_rows_say_what_was_chosen_and_why_not_the_others() -> None:
    found = [
        {"name": choices.CHOSEN, "cpu_ms": 14.0, "why": "chosen"},
        {"name": "XLA", "why": "not possible: no compiler"},
    ]
    forward, loop = choices.rows_of(found, {"2 passes at once": 104.0, "1 pass": 90.0})
    assert forward.note == f"chosen: {choices.CHOSEN}. XLA: not possible: no compiler"
    assert forward.times == {"XLA": None}
    assert loop.times == {"1 pass": pytest.approx(104 / 90)}
    assert loop.held is None


def test_the_copies_that_memory_is_measured_with_are_other_bytes(tmp_path) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "a.jpg").write_bytes(b"jpeg")
    folder = extraction.copies(tmp_path, tmp_path / "copies", 3)
    assert len({file.read_bytes() for file in folder.glob("cat/*.jpg")}) == 3
