"""The processes of the contenders: they get ready one after another, then take turns."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data" / "cats-vs-dogs"
_PREPARE = """
import sys
from graftflow.datasets import write_dataset
write_dataset(sys.argv[1], source="directory:" + sys.argv[2], seed=0, validation_fraction=0.15, test_fraction=0.15)
"""


def prepare(pictures: Path, dataset: Path) -> None:
    """Write the ``dataset`` artifact of a folder, in a process of its own."""
    dataset.mkdir()
    command = [sys.executable, "-c", _PREPARE, str(dataset), str(pictures)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


class ContenderError(Exception):
    """A contender's process ended before its answer; the message is the last line that it printed."""


class Contender:
    """One worker process, ready to make rounds.

    Args:
        kind: of :mod:`benchmarks.extraction.worker`.
        job: what it is told.
        python: its interpreter.
        environment: variables beside those of this process.

    Raises:
        ContenderError: it could not get ready.
    """

    def __init__(
        self,
        kind: str,
        job: Mapping[str, Any],
        *,
        python: str = sys.executable,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix=f"extraction-{kind}-")
        path = Path(self._folder.name)
        (path / "job.json").write_text(json.dumps(dict(job)), encoding="utf-8")
        self._log = path / "log"
        variables = {"PYTHONPATH": f"{ROOT}:{ROOT / 'src'}", "TF_CPP_MIN_LOG_LEVEL": "3"}
        command = [python, "-m", "benchmarks.extraction.worker", kind, str(path / "job.json")]
        with self._log.open("w") as log:
            self._process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                             stderr=log, text=True,
                                             env={**os.environ, **variables, **(environment or {})})  # fmt: skip
        try:
            self._answer("ready")
        except ContenderError:
            self.close()
            raise

    def round(self) -> dict[str, float]:
        """Make one round: ``pictures``, ``wall`` and ``cpu`` seconds, ``peak_mb`` of the process so far."""
        if self._process.stdin is None:
            raise ContenderError("no pipe")
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        told: dict[str, float] = json.loads(self._answer("{"))
        return told

    def close(self) -> None:
        """End the process."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._folder.cleanup()

    def __enter__(self) -> "Contender":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _answer(self, start: str) -> str:
        # Step progress is printed on the same stream.
        for line in self._process.stdout or ():
            if line.startswith(start):
                return line
        lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise ContenderError(lines[-1] if lines else "it printed nothing")


def take_turns(contenders: Mapping[str, Contender], rounds: int) -> dict[str, list[dict[str, float]]]:
    """Let every contender make a round, again and again; each begins a round once in turn."""
    names: Sequence[str] = list(contenders)
    told: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for number in range(rounds):
        first = number % len(names)
        for name in [*names[first:], *names[:first]]:
            told[name].append(contenders[name].round())
            print(f"round {number + 1}: {name} {told[name][-1]}", flush=True)
    return told
