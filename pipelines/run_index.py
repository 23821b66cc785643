"""``run.json``: where a run's artifacts are, what its steps said, and how long they took."""

import json
import os
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

FILE = "run.json"
# What an entry of kfp's cache holds beside the outputs of a step: their SHA-256; see `cached_steps`.
CACHE_DIGEST = "__sha256__"


class RunError(RuntimeError):
    """A run that cannot be read or does not hold what is asked of it; the message is one line."""


@dataclass
class Step:
    """One step of a run.

    Attributes:
        status: ``done``, ``cached``, ``failed``, ``skipped`` or ``interrupted``.
        seconds: wall-clock time of this run's execution; 0 where cached.
        artifacts: name → ``{"uri", "metadata"}``.
        outputs: returned parameters by name.
    """

    status: str
    seconds: float = 0.0
    artifacts: dict[str, dict[str, Any]] = field(default_factory=dict)
    outputs: dict[str, Any] = field(default_factory=dict)


@dataclass
class Run:
    """A run: its parameters and steps, in the order they ran.

    Attributes:
        folder: where ``run.json`` stands.
        parameters: the pipeline's parameters.
        steps: by name, e.g. ``train_head``.
        status: ``succeeded``, ``failed`` or ``interrupted``.
        error: what the failed step said, one line.
        parent: the run whose artifacts a single step was run on.
    """

    folder: Path
    parameters: dict[str, Any]
    steps: dict[str, Step] = field(default_factory=dict)
    status: str = "succeeded"
    error: str = ""
    parent: str = ""

    def artifacts(self, name: str) -> list[dict[str, Any]]:
        """Return ``{"uri", "metadata"}`` of every artifact of this name: of a step in a loop, one an iteration."""
        return [step.artifacts[name] for step in self.steps.values() if name in step.artifacts]

    def artifact(self, name: str) -> dict[str, Any] | None:
        """Return the first artifact of this name, whichever step wrote it."""
        return next(iter(self.artifacts(name)), None)

    def save(self) -> None:
        """Write ``run.json`` and a copy of the report, and point ``latest`` beside the run at them."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if report := self.artifact("report"):
            # KFP's artifacts have no extension; a browser wants one.
            shutil.copyfile(report["uri"], self.folder / "report.html")
        content = {**asdict(self), "folder": self.folder.name}
        aside = self.folder / f".{FILE}.partial"
        aside.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(aside, self.folder / FILE)
        link = self.folder.parent / ".latest.partial"
        link.unlink(missing_ok=True)
        link.symlink_to(self.folder.name)
        os.replace(link, self.folder.parent / "latest")


def key_of(step: str, before: int) -> str:
    """Return what a run calls a step that ran ``before`` times already: ``extract_features 2`` for the second."""
    return f"{step} {before + 1}" if before else step


def step_of(key: str) -> str:
    """Return the step's name of what a run calls it."""
    return key.partition(" ")[0]


def load(folder: str | Path) -> Run:
    """Read a run.

    Raises:
        RunError: where the folder holds no readable ``run.json``.
    """
    path = Path(folder).resolve()
    try:
        content = json.loads((path / FILE).read_text(encoding="utf-8"))
        steps = {name: Step(**step) for name, step in content.pop("steps").items()}
        return Run(**{**content, "folder": path, "steps": steps})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise RunError(
            f"RUN must be the folder of a run, with a {FILE} (make run makes one). Received: '{folder}'"
        ) from error


def read_executor_output(step_folder: Path) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Return the artifacts and returned parameters that kfp wrote for a finished step."""
    content = json.loads((step_folder / "executor_output.json").read_text(encoding="utf-8"))
    artifacts = {
        name: {"uri": listed["artifacts"][0]["uri"], "metadata": listed["artifacts"][0]["metadata"]}
        for name, listed in content.get("artifacts", {}).items()
    }
    return artifacts, content.get("parameterValues", {})


def read_cache_entry(cache: Path, key: str) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Return the same of a step that kfp took from its cache; ``key`` is the start of the entry's name."""
    (entry,) = cache.glob(f"{key}*.json")
    content = json.loads(entry.read_text(encoding="utf-8"))
    content.pop(CACHE_DIGEST, None)
    artifacts, outputs = {}, {}
    for name, value in content.items():
        if isinstance(value, dict) and value.get("__kfp_artifact__"):
            artifacts[name] = {"uri": value["uri"], "metadata": value["metadata"]}
        else:
            outputs[name] = value
    return artifacts, outputs


def key_figures(name: str, step: Step, parameters: dict[str, Any]) -> str:
    """Return, in a few words, what a step found."""
    if step.status == "skipped":
        return f"skipped: the test accuracy is below MIN_ACCURACY={parameters['min_accuracy']:g}"
    try:
        return _FIGURES[name](step)
    except (KeyError, OSError, ValueError, IndexError, TypeError):
        return ""


def _json(step: Step, artifact: str) -> Any:
    path = Path(step.artifacts[artifact]["uri"]) / f"{artifact}.json"
    return json.loads(path.read_text(encoding="utf-8"))


def _dataset(step: Step) -> str:
    content = _json(step, "dataset")
    counts = {split: sum(classes.values()) for split, classes in content["counts"].items()}
    parts = ", ".join(f"{count:,} {split}" for split, count in counts.items())
    left_out = content["audit"]["left_out"]
    classes = len(next(iter(content["counts"].values())))
    tail = f"; {left_out} left out" if left_out else ""
    return f"{classes} classes; {parts}{tail}"


def _checked(step: Step) -> str:
    shards = len(step.outputs["Output"])
    return "all settings in order" + (f"; features in {shards} shards" if shards > 1 else "")


def _shard(step: Step) -> str:
    content = step.artifacts["feature_shard"]["metadata"]
    number, total = int(content["shard"]) + 1, int(content["num_shards"])
    computed, cached = int(content["computed"]), int(content["cached"])
    of = f"shard {number} of {total}: " if total > 1 else ""
    return f"{of}{computed + cached:,} pictures, {cached:,} of them in the cache"


def _features(step: Step) -> str:
    backbone, counts = _json(step, "features")["backbone"], _json(step, "features")["counts"]
    width = int(backbone["feature_width"])
    return f"{backbone['name']}: {sum(counts.values()):,} × {width:,} features"


def _head(step: Step) -> str:
    content = _json(step, "head")
    return f"validation accuracy {content['validation_accuracy']:.3f} (C = {content['chosen_c']:g})"


def _model(step: Step) -> str:
    content = _json(step, "model")
    if content["fine_tuned"] is None:
        return "kept the head alone (no block unfrozen)"
    before, after = content["head"], content["fine_tuned"]
    kept = "kept" if content["chosen"] == "fine-tuned" else "not kept"
    return (
        f"validation log loss {before['log_loss']:.3f} → {after['log_loss']:.3f}, "
        f"accuracy {before['accuracy']:.3f} → {after['accuracy']:.3f}: {kept}"
    )


def _evaluation(step: Step) -> str:
    accuracy = _json(step, "evaluation")["metrics"]["accuracy"]
    loss = _json(step, "evaluation")["metrics"]["log_loss"]["value"]
    return (
        f"test accuracy {accuracy['value']:.3f} [{accuracy['low']:.3f}, {accuracy['high']:.3f}], "
        f"log loss {loss:.3f}"
    )


def _adversarial(step: Step) -> str:
    content = _json(step, "adversarial")
    worst = content["worst_case"]["accuracy"]
    parts = [
        f"{accuracy:.2f} at {epsilon:g}/255"
        for epsilon, accuracy in zip(content["epsilons"], worst, strict=True)
    ]
    return f"worst-case accuracy {content['clean_accuracy']:.2f} clean, {', '.join(parts[:3])}"


def _visuals(step: Step) -> str:
    ideal = _json(step, "visuals")["ideal"]
    return ", ".join(f"{picture['class']} p={picture['probability']:.2f}" for picture in ideal[:3])


def _report(step: Step) -> str:
    return f"{Path(step.artifacts['report']['uri']).stat().st_size / 1e6:.1f} MB"


def _deployment(step: Step) -> str:
    content = _json(step, "deployment")
    told = f"version {int(content['version'])} {content['status']}, {content['label']}"
    return f"{told}; served within {content['validation']['largest_difference']:.0e} of the evaluation"


_FIGURES = {
    "check_settings": _checked,
    "download_data": _dataset,
    "extract_features": _shard,
    "merge_features": _features,
    "train_head": _head,
    "fine_tune": _model,
    "export_model": lambda step: f"version {int(_export(step)['version'])}",
    "evaluate": _evaluation,
    "generate_adversarial": _adversarial,
    "visualise_model": _visuals,
    "write_report": _report,
    "deploy_model": _deployment,
}


def _export(step: Step) -> Any:
    path = Path(step.artifacts["saved_model"]["uri"]) / "export.json"
    return json.loads(path.read_text(encoding="utf-8"))
