"""The rows of the one table of speed points: what every benchmark writes with ``--output`` and ``make bench`` collects.

Standard library only: any interpreter may import it.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

# Units of which less is better; of all others (pictures/s) more is.
LESS_IS_BETTER = ("s", "ms", "MB")


@dataclass(frozen=True)
class Row:
    """One point: a figure of graftflow's beside its limit and its peers, all of the same run.

    Attributes:
        name: what is measured, in a few words that are unique, e.g. ``train_head``.
        unit: of ``graftflow``, ``limit`` and ``peers``: ``s``, ``ms`` or ``MB``, of which less is better, or a rate
            such as ``pictures/s``.
        graftflow: the figure, a median of interleaved rounds.
        limit: what no program could do better on this machine; None where there is none to state.
        peers: the same figure of others, by their names; None for one that is not installed or could not run.
        goal: the share of the limit that is wanted, e.g. 0.95; or, without a limit, the largest (or, of a rate, the
            least) figure. None where nothing is promised: the row informs.
        ahead: whether graftflow must also be at least as good as every peer.
        note: one short sentence: how the limit is defined, or why a peer is missing.
    """

    name: str
    unit: str
    graftflow: float
    limit: float | None = None
    peers: Mapping[str, float | None] = field(default_factory=dict)
    goal: float | None = None
    ahead: bool = False
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """How near the limit graftflow is, whatever the unit: 1 is the limit, 0.5 half as good."""
        return None if self.limit is None else self._share(self.graftflow, self.limit)

    @property
    def times(self) -> dict[str, float | None]:
        """How many times as good as each peer graftflow is, whatever the unit: 2 is twice as fast."""
        return {
            name: None if figure is None else self._share(self.graftflow, figure)
            for name, figure in self.peers.items()
        }

    @property
    def held(self) -> bool | None:
        """Whether the goal is reached; None where nothing is promised."""
        held = []
        if self.goal is not None and self.ratio is not None:
            held.append(self.ratio >= self.goal)
        elif self.goal is not None:
            held.append(self._share(self.graftflow, self.goal) >= 1)
        if self.ahead:
            held += [times >= 1 for times in self.times.values() if times is not None]
        return all(held) if held else None

    def _share(self, ours: float, other: float) -> float:
        return other / ours if self.unit in LESS_IS_BETTER else ours / other


def write(path: Path, benchmark: str, rows: Sequence[Row], *, details: Mapping[str, Any]) -> None:
    """Write a benchmark's rows as JSON.

    Args:
        path: the file; its folder is made where it is missing.
        benchmark: the module's name, e.g. ``extraction``.
        rows: its rows.
        details: all else that was measured, e.g. every round; whatever JSON takes.
    """
    content = {
        "benchmark": benchmark,
        "cpus": os.cpu_count(),
        "rows": [_as_json(row) for row in rows],
        "details": dict(details),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def read(path: Path) -> list[Row]:
    """Read the rows that :func:`write` wrote.

    Raises:
        ValueError: the file holds no rows.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return [Row(**{name: row[name] for name in Row.__dataclass_fields__}) for row in content["rows"]]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"A benchmark's output must hold rows. Received: '{path}' ({error})") from error


def table(rows: Sequence[Row]) -> str:
    """Return the rows as a Markdown table, their notes below it."""
    lines = [
        "| | graftflow | limit | of the limit | times as good as | goal | held |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        peers = ", ".join(f"{name} {_shown(times, '×')}" for name, times in row.times.items())
        cells = [
            row.name,
            _shown(row.graftflow, row.unit),
            _shown(row.limit, row.unit),
            _shown(row.ratio),
            peers or "–",
        ]
        held = {None: "–", True: "yes", False: "NO"}[row.held]
        lines.append("| " + " | ".join([*cells, _goal(row), held]) + " |")
    notes = [f"- {row.name}: {row.note}" for row in rows if row.note]
    return "\n".join([*lines, *([""] if notes else []), *notes])


def _goal(row: Row) -> str:
    parts = []
    if row.goal is not None and row.limit is not None:
        parts.append(f"≥ {row.goal:g}")
    elif row.goal is not None:
        parts.append(f"{'≤' if row.unit in LESS_IS_BETTER else '≥'} {_shown(row.goal, row.unit)}")
    return ", ".join([*parts, *(["ahead"] if row.ahead else [])]) or "–"


def _shown(value: float | None, unit: str = "") -> str:
    if value is None:
        return "–"
    # Three digits, and none behind the point where there are three before it.
    digits = f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{digits} {unit}" if unit and unit != "×" else f"{digits}{unit}"


def _as_json(row: Row) -> dict[str, Any]:
    return {**asdict(row), "ratio": row.ratio, "times": row.times, "held": row.held}
