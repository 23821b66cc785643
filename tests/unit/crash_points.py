"""Kills a piece of work before every single change that it makes to the names in a folder, and looks at what is left.

``python -m tests.unit.crash_points SCENARIO FOLDER`` prints how many kills there were. It is a process of its own, so
that its forks copy no threads.
"""

import contextlib
import io
import json
import os
import shutil
import signal
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from graftflow import caches, deployment, feature_cache, files, releases, seals, sources
from graftflow.errors import InputError
from pipelines import run_index

# Audit events of Python: between two of them nothing that another process sees of names changes.
_CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate"}
_WRITES = os.O_CREAT | os.O_TRUNC


class ArtifactReplaced:
    """A sealed artifact takes the place of an older one."""

    def prepare(self, folder: Path) -> None:
        self._write(folder, "old")

    def work(self, folder: Path) -> None:
        self._write(folder, "new")

    def check(self, folder: Path) -> None:
        """The artifact is the old one, the new one, or for a moment none."""
        if (folder / "artifact").exists():
            seals.check_seals(folder / "artifact")
            texts = {path.read_text() for path in (folder / "artifact").glob("part-*")}
            assert texts in ({"old"}, {"new"}), texts

    def check_after(self, folder: Path) -> None:
        assert (folder / "artifact" / "part-0").read_text() == "new"

    def _write(self, folder: Path, text: str) -> None:
        with seals.sealed_directory(folder / "artifact") as aside:
            for number in range(2):
                (aside / f"part-{number}").write_text(text)


class WorkFinished:
    """What hours have made is kept in the cache until the artifact made of it is sealed and has its name."""

    def prepare(self, folder: Path) -> None:
        kept = folder / "cache" / "hours" / "key"
        kept.mkdir(parents=True)
        for number in range(2):
            (kept / f"hour-{number}").write_text(str(number))

    def work(self, folder: Path) -> None:
        with seals.sealed_work(folder / "artifact") as (aside, finished):
            kept = finished.enter_context(caches.unfinished_work(folder / "cache", "hours", "key"))
            files.write_json(aside / "hours.json", self._hours(kept))

    def check(self, folder: Path) -> None:
        if (folder / "artifact").exists():
            seals.check_seals(folder / "artifact")
        else:
            assert self._hours(folder / "cache" / "hours" / "key") == ["0", "1"]

    def check_after(self, folder: Path) -> None:
        assert not list((folder / "cache" / "hours").iterdir()), "something is left in the cache"

    def _hours(self, kept: Path) -> list[str]:
        return [path.read_text() for path in sorted(kept.glob("hour-*"))]


class VersionDeployed:
    """A version is published beside a stable one, and becomes the stable one."""

    def prepare(self, folder: Path) -> None:
        for version in (1, 2):
            model = folder / f"export-{version}" / str(version)
            (model / "variables").mkdir(parents=True)
            (model / "saved_model.pb").write_text(f"graph {version}")
            (model / "variables" / "variables.index").write_text(f"weights {version}")
            told = {"version": str(version), "sha256": files.sha256_directory(model)}
            files.write_json(model.parent / "export.json", told)
        self._deploy(folder, 1)

    def work(self, folder: Path) -> None:
        self._deploy(folder, 2)

    def check(self, folder: Path) -> None:
        """Version 2 is whole or not there; the stable one is whole and in the store; others see no other folder."""
        model = folder / "store" / "pets"
        for version in model.glob("[!.]*"):
            export = files.read_json(folder / f"export-{version.name}" / "export.json")
            assert files.sha256_directory(version) == export["sha256"], version
        rows = releases.list_versions(store=str(folder / "store"), model_name="pets")
        (stable,) = (row for row in rows if row.label == "stable")
        assert stable.version in (1, 2)
        assert "not in the store" not in stable.note

    def check_after(self, folder: Path) -> None:
        rows = releases.list_versions(store=str(folder / "store"), model_name="pets")
        assert [(row.version, row.label) for row in rows] == [(2, "stable"), (1, "")]
        told = json.loads((folder / "store" / "releases.json").read_text())["models"]["pets"]
        assert [(e["action"], e["version"], e["replaced"]) for e in told] == [
            ("deploy", 1, None),
            ("deploy", 2, 1),
        ]
        left = [path.name for path in (folder / "store").rglob(".*")]
        assert not left, left

    def _deploy(self, folder: Path, version: int) -> None:
        store = str(folder / "store")
        deployment.deploy(folder / f"export-{version}", store=store, model_name="pets")
        releases.release(store=store, model_name="pets", version=version)


class StableRolledBack(VersionDeployed):
    """The stable version goes back to the one before."""

    def prepare(self, folder: Path) -> None:
        super().prepare(folder)
        self._deploy(folder, 2)

    def work(self, folder: Path) -> None:
        rows = releases.list_versions(store=str(folder / "store"), model_name="pets")
        if next(row.version for row in rows if row.label == "stable") == 2:
            releases.rollback(store=str(folder / "store"), model_name="pets")

    def check_after(self, folder: Path) -> None:
        rows = releases.list_versions(store=str(folder / "store"), model_name="pets")
        assert [(row.version, row.label, row.note) for row in rows] == [
            (2, "", "rolled back"),
            (1, "stable", ""),
        ]


class ArchiveUnpacked:
    """An archive is unpacked into the cache, where later runs take it from."""

    def prepare(self, folder: Path) -> None:
        with zipfile.ZipFile(folder / "pictures.zip", "w") as archive:
            for name in ("cat/1.txt", "cat/2.txt", "dog/1.txt"):
                archive.writestr(name, name)

    def work(self, folder: Path) -> None:
        scratch = folder / "scratch"
        scratch.mkdir(exist_ok=True)
        unpacked = sources._unpack(str(folder / "pictures.zip"), "", scratch, folder / "cache", ())
        assert {p.relative_to(unpacked).as_posix() for p in unpacked.glob("*/*")} == {
            "cat/1.txt",
            "cat/2.txt",
            "dog/1.txt",
        }

    def check(self, folder: Path) -> None:
        for unpacked in (folder / "cache" / "unpacked").glob("[!.]*"):
            assert len(list(unpacked.glob("contents/*/*"))) == 3

    def check_after(self, folder: Path) -> None:
        assert not list((folder / "cache" / "unpacked").glob(".*")), "something is left aside"


class FeaturesKept:
    """Rows of features are written to the cache, a file a flush."""

    def prepare(self, folder: Path) -> None:
        self._keep(folder, range(3))

    def work(self, folder: Path) -> None:
        self._keep(folder, range(3, 6))
        self._keep(folder, range(6, 9))

    def check(self, folder: Path) -> None:
        rows = feature_cache.FeatureCache(folder / "rows", width=2)
        assert len(rows) in (3, 6, 9)
        for number in range(len(rows)):
            assert rows.get(bytes([number]) * 32).tolist() == [number, number]

    def check_after(self, folder: Path) -> None:
        assert len(feature_cache.FeatureCache(folder / "rows", width=2)) == 9

    def _keep(self, folder: Path, numbers: range) -> None:
        rows = feature_cache.FeatureCache(folder / "rows", width=2)
        rows.add([bytes([n]) * 32 for n in numbers], np.array([[n, n] for n in numbers], np.float32))
        rows.flush()


class RunSaved:
    """A run is saved, and the link to the latest one moves to it."""

    def prepare(self, folder: Path) -> None:
        self._save(folder, "one")

    def work(self, folder: Path) -> None:
        self._save(folder, "two")

    def check(self, folder: Path) -> None:
        latest = run_index.load(folder / "runs" / "latest")
        assert latest.parameters == {"which": latest.folder.name}
        page = latest.folder / "report.html"
        assert page.read_text() == f"page of {latest.folder.name}"

    def check_after(self, folder: Path) -> None:
        assert run_index.load(folder / "runs" / "latest").folder.name == "two"
        assert not list((folder / "runs").rglob(".*")), "something is left aside"

    def _save(self, folder: Path, name: str) -> None:
        (folder / f"page-{name}").write_text(f"page of {name}")
        step = run_index.Step("done", 1.0, {"report": {"uri": str(folder / f"page-{name}"), "metadata": {}}})
        run_index.Run(folder / "runs" / name, {"which": name}, {"write_report": step}).save()


SCENARIOS: dict[str, Callable[[], Any]] = {
    scenario.__name__: scenario
    for scenario in (
        ArtifactReplaced,
        WorkFinished,
        VersionDeployed,
        StableRolledBack,
        ArchiveUnpacked,
        FeaturesKept,
        RunSaved,
    )
}


def killed_at(change: int, folder: Path, work: Callable[[Path], None]) -> bool:
    """Do the work in a fork that dies just before one of its changes below a folder; returns whether it did."""
    pid = os.fork()
    if pid == 0:
        seen = 0

        def watch(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal seen
            opens = event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITES
            # What shutil.rmtree removes it names by the open folder above and the last part of the path.
            place = str(arguments[0]) if arguments else ""
            if (opens or event in _CHANGES) and (place.startswith(str(folder)) or not place.startswith("/")):
                seen += 1
                if seen == change:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(watch)
        code = 1
        with contextlib.redirect_stdout(io.StringIO()):
            with contextlib.suppress(InputError):
                work(folder)
                code = 0
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code not in (0, -signal.SIGKILL):
        raise RuntimeError(f"the work ended with code {code} at change {change}")
    return code != 0


def run(scenario: Any, root: Path) -> int:
    """Kill a scenario's work at every change, look, and do it again; returns the number of kills."""
    kills = 0
    while True:
        folder = root / str(kills)
        folder.mkdir()
        scenario.prepare(folder)
        killed = killed_at(kills + 1, folder, scenario.work)
        scenario.check(folder)
        if killed_at(0, folder, scenario.work):
            raise RuntimeError("nobody kills the second run")
        scenario.check(folder)
        scenario.check_after(folder)
        shutil.rmtree(folder)
        if not killed:
            return kills
        kills += 1


if __name__ == "__main__":
    print(run(SCENARIOS[sys.argv[1]](), Path(sys.argv[2])))
