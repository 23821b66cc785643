"""What a run shows on the terminal: the step at work with its bar, then one line a finished step, then a table."""

import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table

from pipelines.run_index import Run, Step, key_figures

_PROGRESS = re.compile(r"progress: (?P<label>.+) (?P<done>\d+)/(?P<total>\d+) (?P<unit>\S+)$")
_MARKS = {
    "done": "[green]✔[/]",
    "cached": "[cyan]↺[/]",
    "failed": "[red]✘[/]",
    "interrupted": "[yellow]■[/]",
    "skipped": "[yellow]–[/]",
}


# How libraries say that memory has ended without saying so.
_OUT_OF_MEMORY = (
    "failed to map segment from shared object",
    "can't start new thread",
    "error return without exception set",
    "Status: 1, message: could not create a primitive",  # oneDNN: dnnl_out_of_memory
)


def in_a_line(kind: str, message: str) -> str:
    """Return what an error line says of an exception, of its class's name and its message."""
    if kind == "InputError":
        return message
    said = f"{kind}: {message}" if message else kind
    return f"{said}, perhaps out of memory" if any(words in message for words in _OUT_OF_MEMORY) else said


def fail(message: str) -> int:
    """Print an error as one line and return the exit code that goes with it."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return 1


class RunConsole:
    """Draws a run. On a terminal the step at work has a live line; in a log, a line every 10 seconds.

    Args:
        file: where to draw; must be the real output, not one that is being redirected.
        figures: says in a few words what a step found, from its name, the step and the run's parameters.
    """

    def __init__(
        self, file: TextIO, figures: Callable[[str, Step, dict[str, Any]], str] = key_figures
    ) -> None:
        self._figures = figures
        self._step, self._started, self._said = "", 0.0, 0.0
        self._label, self._done, self._total, self._unit = "", 0, 0, ""
        self.console = Console(file=file, highlight=False)
        if not self.console.is_terminal:
            self.console = Console(file=file, highlight=False, width=160)
        self._live = Live(console=self.console, refresh_per_second=8, transient=True,
                          get_renderable=self._draw, redirect_stdout=False,
                          redirect_stderr=False)  # fmt: skip

    def __enter__(self) -> "RunConsole":
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def say(self, text: str) -> None:
        """Print a line that belongs to no step."""
        self.console.print(f"[yellow]![/] {escape(text)}", soft_wrap=True)

    def started(self, step: str) -> None:
        """A step has begun."""
        self._step, self._label = step, ""
        self._started = self._said = time.monotonic()
        if not self.console.is_terminal:
            self.console.print(f"▸ {step}")

    def line(self, text: str) -> None:
        """A step has printed a line; those that tell progress are drawn."""
        match = _PROGRESS.search(text)
        if not match:
            return
        self._label, self._unit = match["label"], match["unit"]
        self._done, self._total = int(match["done"]), int(match["total"])
        now = time.monotonic()
        if not self.console.is_terminal and now - self._said >= 10:
            self._said = now
            elapsed = now - self._started
            self.console.print(f"  {self._label} {self._done}/{self._total} {self._unit}, {elapsed:.0f} s")

    def finished(self, name: str, step: Step, run: Run) -> None:
        """A step has ended, or was taken from the cache."""
        self._step = ""
        time_text = "cached" if step.status == "cached" else f"{step.seconds:.1f} s"
        figures = self._figures(name, step, run.parameters)
        self.console.print(f"{_MARKS[step.status]} {name:<21}{time_text:>8}  [dim]{figures}[/]")

    def _draw(self) -> Table | str:
        if not self._step:
            return ""
        elapsed = time.monotonic() - self._started
        row = Table.grid(padding=(0, 1))
        bar = ProgressBar(total=self._total or 1, completed=self._done, width=24,
                          pulse=not self._label)  # fmt: skip
        told = f"{self._label} {self._done}/{self._total} {self._unit}" if self._label else ""
        row.add_row("[bold]▸[/]", f"[bold]{self._step:<21}[/]", f"{elapsed:6.1f} s ", bar, told)
        return row

    def table(self, run: Run, seconds: float) -> None:
        """Print the table that ends a run: step, seconds, key figures."""
        table = Table(box=None, pad_edge=False, padding=(0, 2), header_style="bold")
        table.add_column("step", no_wrap=True)
        table.add_column("seconds", justify="right", no_wrap=True)
        table.add_column("key figures")
        for name, step in run.steps.items():
            shown = "cached" if step.status == "cached" else f"{step.seconds:.1f}"
            shown = "–" if step.status == "skipped" else shown
            table.add_row(name, shown, self._figures(name, step, run.parameters))
        table.add_row("[bold]total[/]", f"[bold]{seconds:.1f}[/]", "")
        self.console.print()
        self.console.print(table)

    def next_commands(self, run: Run, *, store: str, model_name: str) -> None:
        """Print where the report is and what to type next."""
        self.console.print()
        if run.artifact("report"):
            self.console.print(f"Report   {_short(run.folder / 'report.html')}", soft_wrap=True)
        deployed = run.steps.get("deploy_model")
        if deployed and deployed.status in ("done", "cached"):
            serve = "make serve" + ("" if store == "models" else f" STORE={store}")
            extra = "" if model_name == "graftflow" else f" MODEL_NAME={model_name}"
            self.console.print(f"Next     {serve}{extra}", soft_wrap=True)
            self.console.print(f"         make query IMAGE=picture.jpg{extra}", soft_wrap=True)
        else:
            self.console.print("Next     make run MIN_ACCURACY=0.5   deploys a weaker model too")


def _short(path: Path) -> str:
    """Return a path relative to the working directory where that is shorter."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
