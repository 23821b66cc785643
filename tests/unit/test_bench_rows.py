"""The one table of speed points: ratios whatever the unit, goals that can be missed, and benchmarks that fail."""

from pathlib import Path

import pytest

from benchmarks import __main__ as bench
from benchmarks import rows
from benchmarks.rows import Row


@pytest.mark.parametrize(
    ("row", "ratio", "held"),
    [
        (Row("a", "s", 2.0, limit=1.0, goal=0.5), 0.5, True),
        (Row("a", "s", 2.1, limit=1.0, goal=0.5), 1 / 2.1, False),
        (Row("a", "pictures/s", 95.0, limit=100.0, goal=0.95), 0.95, True),
        (Row("a", "pictures/s", 94.0, limit=100.0, goal=0.95), 0.94, False),
        (Row("a", "pictures/s", 99.0, limit=100.0, goal=0.95, ahead=True, peers={"b": 101.0}), 0.99, False),
        (Row("a", "pictures/s", 99.0, limit=100.0, goal=0.95, ahead=True, peers={"b": None}), 0.99, True),
        (Row("a", "s", 14.0, goal=15.0), None, True),
        (Row("a", "s", 16.0, goal=15.0), None, False),
        (Row("a", "s", 16.0), None, None),
    ],
)
def test_a_goal_is_held_or_missed_whatever_the_unit(row: Row, ratio: float | None, held: bool | None) -> None:
    assert row.ratio == (ratio if ratio is None else pytest.approx(ratio))
    assert row.held is held


def test_times_are_above_one_where_graftflow_is_better() -> None:
    assert Row("a", "s", 2.0, peers={"b": 4.0}).times == {"b": 2.0}
    assert Row("a", "pictures/s", 2.0, peers={"b": 4.0}).times == {"b": 0.5}


def test_rows_come_back_as_written_and_the_table_tells_a_missed_goal(tmp_path: Path) -> None:
    written = [Row("a", "s", 2.0, 1.0, {"b": None}, 0.9, True, "why"), Row("c", "MB", 3.0)]
    rows.write(tmp_path / "new" / "a.json", "a", written, details={"rounds": [1]})
    assert rows.read(tmp_path / "new" / "a.json") == written
    told = rows.table(written)
    assert "NO" in told
    assert "- a: why" in told


def test_a_benchmark_that_fails_is_told_and_the_others_count(tmp_path: Path) -> None:
    package = tmp_path / "benchmarks"
    package.mkdir()
    (package / "rows.py").write_text(Path(rows.__file__).read_text(encoding="utf-8"), encoding="utf-8")
    (package / "good.py").write_text(
        "import sys; from pathlib import Path; from benchmarks.rows import Row, write\n"
        "write(Path(sys.argv[2]), 'good', [Row('good', 's', 1.0, goal=2.0)], details={})\n"
    )
    (package / "bad.py").write_text("raise SystemExit('the disk is full')\n")
    (package / "odd.py").write_text("import sys; open(sys.argv[2], 'w').write('{}')\n")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "bad.json").write_text("{}")  # of an earlier run, never read
    found, failed = bench.collect(("bad", "odd", "good"), tmp_path / "out", root=tmp_path)
    assert found == [Row("good", "s", 1.0, goal=2.0)]
    assert [line.partition(":")[0] for line in failed] == ["bad", "odd"]
    assert "the disk is full" in failed[0]
