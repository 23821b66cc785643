"""Mutation testing: does a test fail where one place of the code is changed? ``tests/README.md`` says how to run it.

The changes are those of mutmut. mutmut itself leaves decorated functions alone, which here are every ``tf.function``,
and puts several variants of a function side by side, which TensorFlow would trace; so each mutant is a module of its
own, imported in a forked child of one process that has imported TensorFlow (3 to 5 seconds, paid once).
"""

import argparse
import gc
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import resource
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.mutations import ROOT, SOURCES, Mutant, mutants_of

# Imported before the first fork; graftflow itself is imported in each child.
HEAVY = (
    "numpy", "scipy", "sklearn.linear_model", "sklearn.metrics", "skimage", "PIL.Image", "keras", "tensorflow",
    "tensorflow_serving.apis.prediction_log_pb2", "threadpoolctl", "_pytest.skipping", "unittest.mock",
)  # fmt: skip


@dataclass(frozen=True)
class Campaign:
    """Files of the library, the tests that are to notice their mutants, and what is built anew for each mutant."""

    files: tuple[str, ...]
    tests: tuple[str, ...]
    rebuilt: tuple[str, ...] = ()  # folders of the ``artifacts`` fixture


CAMPAIGNS = {
    "metrics": Campaign(("metrics.py",), ("test_metrics.py",)),
    "heads": Campaign(("heads.py", "logistic.py"), ("test_heads.py",), rebuilt=("head",)),
    "datasets": Campaign(
        ("datasets.py", "splits.py"),
        ("test_splits.py", "test_datasets.py", "test_near_duplicates.py", "test_conversions.py"),
    ),
    "export": Campaign(("export.py",), ("test_export.py",), rebuilt=("saved_model", "evaluation")),
    "attacks": Campaign(
        tuple(
            f"attacks/{name}.py"
            for name in (
                "auto_pgd", "balls", "descents", "ensembles", "gradient_signs", "losses", "networks",
                "projected_gradients", "results", "square_search",
            )
        ),
        ("test_attacks.py", "test_attacks_strength.py"),
    ),
}  # fmt: skip


class Mutated(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Gives one module another source."""

    def __init__(self, file: str, source: str) -> None:
        self.module = "graftflow." + file.removesuffix(".py").replace("/", ".")
        self.path, self.source = SOURCES / file, source

    def find_spec(
        self, name: str, path: Any = None, target: Any = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != self.module:
            return None
        return importlib.util.spec_from_file_location(name, self.path, loader=self)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> None:
        return None

    def exec_module(self, module: Any) -> None:
        # tf.function reads the source of what it traces: from a file of its own, or it would read the original.
        path = Path(os.environ["MUTANT_FOLDER"]) / self.path.name
        path.write_text(self.source, encoding="utf-8")
        module.__file__ = str(path)
        exec(compile(self.source, str(path), "exec"), module.__dict__)


class Session:
    """A pytest plugin: fast tests first, artifacts from disk, and who failed."""

    def __init__(
        self, folder: Path, rebuilt: Sequence[str], durations: dict[str, float], slowest: float
    ) -> None:
        self.folder, self.rebuilt, self.durations, self.slowest = folder, rebuilt, durations, slowest
        self.seconds: dict[str, float] = {}
        self.failed = ""

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        files = list(dict.fromkeys(item.path for item in items))
        items.sort(key=lambda item: (files.index(item.path), self.durations.get(item.nodeid, 0.0)))
        if self.slowest:
            items[:] = [item for item in items if self.durations.get(item.nodeid, 0.0) <= self.slowest]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[Any]:
        began = time.process_time()
        result = yield
        self.seconds[item.nodeid] = time.process_time() - began
        return result

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and not self.failed:
            self.failed = report.nodeid

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed and not self.failed:
            self.failed = report.nodeid or "collection"

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any, request: Any) -> Iterator[Any]:
        kept = self.folder / "artifacts"
        if fixturedef.argname != "artifacts":
            return (yield)
        if not kept.is_dir():
            made = yield
            shutil.copytree(made.dataset.parent, kept)
            shutil.copytree(made.pictures, kept / "pictures")
            return made
        fixturedef.func = self._from_disk
        return (yield)

    def _from_disk(self, tmp_path_factory: pytest.TempPathFactory, **_: object) -> Any:
        from graftflow import evaluation, export, heads
        from tests.conftest import Artifacts

        kept, own = self.folder / "artifacts", tmp_path_factory.mktemp("rebuilt")
        names = ("pictures", "dataset", "features", "head", "model", "saved_model", "evaluation")
        paths = {name: (own if name in self.rebuilt else kept) / name for name in names}
        for name in self.rebuilt:
            paths[name].mkdir()
        if "head" in self.rebuilt:
            heads.write_head(paths["head"], features_path=paths["features"])
        if "saved_model" in self.rebuilt:
            export.write_saved_model(
                paths["saved_model"], model_path=paths["model"], dataset_path=paths["dataset"], version=3
            )
        if "evaluation" in self.rebuilt:
            evaluation.write_evaluation(
                paths["evaluation"], saved_model_path=paths["saved_model"], dataset_path=paths["dataset"]
            )
        return Artifacts(**paths)


def run_tests(
    campaign: Campaign,
    folder: Path,
    finder: Mutated | None,
    *,
    durations: dict[str, float],
    slowest: float,
    limit: float,
) -> dict[str, Any]:
    """Run a campaign's tests in a child, until the first fails; ``limit`` is in seconds of processor time."""
    told = folder / "told.json"
    told.unlink(missing_ok=True)
    began = time.time()
    child = os.fork()
    if not child:
        _be_child(campaign, folder, finder, durations, slowest, limit, told)
    status, stuck = 0, False
    while True:
        done, status, usage = os.wait4(child, os.WNOHANG)
        if done:
            break
        # Only a test that waits gets here: processor time is limited in the child.
        if time.time() - began > 10 * limit and not stuck:
            os.killpg(child, signal.SIGKILL)
            stuck = True
        time.sleep(0.02)
    code = os.waitstatus_to_exitcode(status)
    answer: dict[str, Any] = {"code": code, "failed": "", "seconds": {}}
    if told.is_file():
        answer |= json.loads(told.read_text())
    late = stuck or code == -signal.SIGXCPU
    return answer | {"late": late, "processor": usage.ru_utime + usage.ru_stime}


def outcome(found: dict[str, Any]) -> str:
    """Return what a run of the tests says of its mutant; ``error`` where it says nothing of it."""
    match found:
        case {"late": True}:
            return "timeout"
        case {"code": 0}:
            return "survived"
        case {"code": 1 | 2, "failed": str(test)} if test:  # 2: the mutant cannot be imported
            return "killed"
    return "error"


def _be_child(
    campaign: Campaign,
    folder: Path,
    finder: Mutated | None,
    durations: dict[str, float],
    slowest: float,
    limit: float,
    told: Path,
) -> None:
    code = 70
    try:
        os.setpgid(0, 0)
        # Beyond the first comes SIGXCPU, which nothing else sends; want of memory sends SIGKILL.
        resource.setrlimit(resource.RLIMIT_CPU, (int(limit) + 1, int(limit) + 10))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        null = os.open(folder / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(null, 1)
        os.dup2(null, 2)
        if finder:
            sys.meta_path.insert(0, finder)
        temporary, current = folder / "temporary", folder / "current"
        for path in (temporary, current):  # what one mutant writes, another must not find
            shutil.rmtree(path, ignore_errors=True)
        current.mkdir()
        os.chdir(current)
        plugin = Session(folder, campaign.rebuilt, durations, slowest)
        options = ["-x", "-q", "-p", "no:cacheprovider", f"--basetemp={temporary}", f"--rootdir={ROOT}"]
        tests = [str(ROOT / "tests" / "unit" / name) for name in campaign.tests]
        code = int(
            pytest.main([*options, f"--config-file={ROOT / 'pyproject.toml'}", *tests], plugins=[plugin])
        )
        told.write_text(json.dumps({"failed": plugin.failed, "seconds": plugin.seconds}))
    finally:
        os._exit(code)


def run_campaign(
    name: str, *, folder: Path, sample: int, seed: int, only: Sequence[str], slowest: float
) -> tuple[list[Mutant], int]:
    """Run the tests of a module against its mutants, and return them with how many there are in all."""
    campaign = CAMPAIGNS[name]
    mutants, total = mutants_of(campaign.files, sample=sample, seed=seed, only=only)
    original = Mutated(campaign.files[0], (SOURCES / campaign.files[0]).read_text(encoding="utf-8"))
    # Twice, since the first run makes the artifacts where they are not there yet.
    kept = folder / f"{name}-seconds.json"
    for finder in (None, original) if not kept.is_file() else ():
        plain = run_tests(campaign, folder, finder, durations={}, slowest=0, limit=600)
        if plain["code"]:
            raise SystemExit(
                f"error: tests of {name} fail without a mutant: {plain['failed']}. See {folder}/output.txt."
            )
        kept.write_text(json.dumps(plain["seconds"]))
    durations = json.loads(kept.read_text())
    limit = 3 * sum(durations.values()) + 10
    print(f"{name}: {len(mutants)} of {total} mutants, tests of {sum(durations.values()):.1f} s", flush=True)
    for number, mutant in enumerate(mutants):
        found = run_tests(
            campaign,
            folder,
            Mutated(mutant.file, mutant.source),
            durations=durations,
            slowest=slowest,
            limit=limit,
        )
        mutant.outcome, mutant.killer, mutant.seconds = outcome(found), found["failed"], found["processor"]
        with (folder / f"{name}.jsonl").open("a", encoding="utf-8") as outcomes:
            outcomes.write(json.dumps({k: v for k, v in asdict(mutant).items() if k != "source"}) + "\n")
        if mutant.outcome != "killed":
            print(f"{number}: {mutant.outcome} {mutant.name}\n{mutant.diff}\n", flush=True)
        if mutant.outcome == "error":
            said = (folder / "output.txt").read_text(errors="replace")[-1000:]
            print(f"the tests ended with code {found['code']}:\n{said}", flush=True)
    return mutants, total


def interval(killed: int, of: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share."""
    z, p = 1.96, killed / of
    middle, half = p + z * z / (2 * of), z * (p * (1 - p) / of + z * z / (4 * of * of)) ** 0.5
    return (middle - half) / (1 + z * z / of), (middle + half) / (1 + z * z / of)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run campaigns, print survivors and scores, and append each outcome to ``MODULE.jsonl``."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("modules", nargs="*", help=f"of {', '.join(CAMPAIGNS)}; none: all")
    parser.add_argument("--sample", type=int, default=0, help="mutants drawn a module; 0: all")
    parser.add_argument("--seed", type=int, default=0, help="fixes the sample")
    parser.add_argument("--only", nargs="*", default=(), help="names of mutants, as they are printed")
    parser.add_argument("--slowest", type=float, default=0, help="leave out tests of more seconds; 0: none")
    parser.add_argument(
        "--folder", type=Path, default=ROOT / "build" / "mutants", help="for artifacts and outcomes"
    )
    chosen = parser.parse_args(arguments)
    unknown = [name for name in chosen.modules if name not in CAMPAIGNS]
    if unknown:
        parser.error(f"modules must be of {', '.join(CAMPAIGNS)}. Received: {', '.join(unknown)}.")
    os.nice(19)
    os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    os.environ |= {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    folder = chosen.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["MUTANT_FOLDER"] = str(folder)
    os.chdir(ROOT)
    sys.path[:0] = [str(ROOT / "src"), str(ROOT)]
    for module in HEAVY:
        importlib.import_module(module)
    gc.freeze()  # or every child would walk all that TensorFlow made
    unjudged = 0
    for name in chosen.modules or CAMPAIGNS:
        began = resource.getrusage(resource.RUSAGE_CHILDREN)
        mutants, total = run_campaign(
            name,
            folder=folder,
            sample=chosen.sample,
            seed=chosen.seed,
            only=chosen.only,
            slowest=chosen.slowest,
        )
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = used.ru_utime + used.ru_stime - began.ru_utime - began.ru_stime
        counts = Counter(mutant.outcome for mutant in mutants)
        killed, judged = counts["killed"], len(mutants) - counts["error"]
        low, high = interval(killed, judged) if judged else (0.0, 1.0)
        print(
            f"{name}: {killed} of {judged} killed by a test, {killed / max(1, judged):.3f} ({low:.3f} to {high:.3f}), "
            f"{counts['timeout']} ended by the time limit alone (killed where they loop), {counts['survived']} "
            f"survived, in {seconds:.0f} s; there are {total}",
            flush=True,
        )
        unjudged += counts["error"]
    if unjudged:
        raise SystemExit(
            f"error: the tests of {unjudged} mutants came to no result, and no score counts them."
        )


if __name__ == "__main__":
    main()
