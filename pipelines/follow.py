"""Follows a run on a cluster: a line for every change of a step, and at the end what the run found."""

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import kfp_server_api
import requests

from pipelines.kfp_api import Api, ApiError, one_line

SUCCEEDED = "SUCCEEDED"
_ENDED = (SUCCEEDED, "FAILED", "CANCELED", "SKIPPED")
_ATTEMPTS = 6  # calls in a row that may fail before following ends
_HEARTBEAT = 60.0  # seconds without a change after which a line tells what is going on
_LARGEST_REPORT = 256 * 2**20  # bytes
Say = Callable[[str], None]


class FollowTimeoutError(Exception):
    """The time for following is over; the run goes on."""


def step_names(pipeline: Any) -> dict[str, str]:
    """Return the pipeline's steps by each name that a server may show: the task's, and its display name's."""
    spec = pipeline.pipeline_spec
    dags = [spec.root.dag, *(c.dag for c in spec.components.values() if c.HasField("dag"))]
    names = {}
    for dag in dags:
        for name, task in dag.tasks.items():
            if not spec.components[task.component_ref.name].HasField("dag"):  # a group is no step
                names[_slug(name)] = names[_slug(task.task_info.name)] = name
    return names


def follow(
    api: Api,
    run_id: str,
    *,
    steps: Mapping[str, str],
    poll_seconds: float,
    timeout: float | None,
    say: Say,
) -> kfp_server_api.V2beta1Run:
    """Follow a run to its end and return it.

    Args:
        api: the connection.
        run_id: of the run.
        steps: as :func:`step_names` gives them; KFP's own tasks (drivers, groups) are not told.
        poll_seconds: between two looks.
        timeout: seconds; ``None`` for as long as it takes.
        say: takes one line.

    Raises:
        FollowTimeoutError: the run has not ended in time.
        ApiError: the cluster answered no more.
    """
    started = said = time.monotonic()
    seen: dict[str, str] = {}
    failures = 0
    while True:
        try:
            run = api.get_run(run_id)
            failures = 0
        except ApiError as error:
            failures += 1
            if not error.transient or failures >= _ATTEMPTS:
                raise
            say(f"{_clock(started)} {error}; trying again")
        else:
            for line in _changes(run, seen, steps):
                say(f"{_clock(started)} {line}")
                said = time.monotonic()
            if run.state in _ENDED:
                return run
            if time.monotonic() - said >= _HEARTBEAT:
                at_work = [n for n, s in _states(run, steps) if s == "RUNNING"]
                say(f"{_clock(started)} {_word(run.state)}: {', '.join(at_work) or 'no step'}")
                said = time.monotonic()
        left = float("inf") if timeout is None else timeout - (time.monotonic() - started)
        if left <= 0:
            raise FollowTimeoutError(f"not ended after {timeout:g} s")
        time.sleep(min(poll_seconds, left))


def failures_of(run: kfp_server_api.V2beta1Run, steps: Mapping[str, str]) -> list[str]:
    """Return a line for each step that failed, and one for the run's own error."""
    lines = []
    for task in _details(run):
        if task.state != "FAILED" or not (name := _step(task, steps)):
            continue
        message = one_line(str(getattr(task.error, "message", "") or ""))
        pods = [task.pod_name, *(child.pod_name for child in task.child_tasks or [])]
        pod = next((pod for pod in pods if pod), "")
        logs = f"logs: kubectl logs {pod} -c main" if pod else ""
        lines.append(f"{name} failed{message and ': ' + message}{logs and ' (' + logs + ')'}")
    own = one_line(str(getattr(run.error, "message", "") or ""))
    return lines + ([own] if own else [])


def tell_results(api: Api, run: kfp_server_api.V2beta1Run, *, folder: Path, say: Say) -> None:
    """Say the metrics of a run and fetch its report, as far as the server hands them out.

    Servers without an artifact API get a line with the page of the artifact instead.
    """
    artifacts = {
        name.rpartition("-")[2]: listed.artifact_ids[-1]
        for task in _details(run)
        for name, listed in (task.outputs or {}).items()
        if listed.artifact_ids
    }
    told = False
    for name, artifact_id in artifacts.items():
        if name != "report" and not name.endswith("metrics") and name != "robustness":
            continue
        told = True
        page = api.cluster.page(f"artifacts/{artifact_id}")
        try:
            found = api.artifact(str(artifact_id))
        except ApiError:
            say(f"{name}: {page}")
            continue
        figures = _figures(found)
        if name == "report" and found.get("download_url"):
            say(f"report: {_fetch(api, str(found['download_url']), folder / f'{run.run_id}.html') or page}")
        else:
            say(f"{name}: {figures or found.get('uri') or page}")
    if not told:
        say("metrics and report: on the run's page (this server does not list a run's artifacts)")


def _fetch(api: Api, url: str, path: Path) -> str:
    """Return where the report was saved, or its address where it could not be fetched."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.partial")
    try:
        with requests.Session() as session:
            session.trust_env = False  # a signed address needs no .netrc
            session.verify = api.cluster.ca_cert or True
            answer = session.get(url, timeout=(10, 60), stream=True)
            answer.raise_for_status()
            size = 0
            with open(aside, "wb") as file:
                for part in answer.iter_content(2**20):
                    size += file.write(part)
                    if size > _LARGEST_REPORT:
                        raise requests.RequestException("larger than a report")
    except requests.RequestException:
        aside.unlink(missing_ok=True)
        return ""
    os.replace(aside, path)
    return str(path)


def _figures(artifact: dict[str, Any]) -> str:
    metadata = artifact.get("metadata")
    numbers = metadata.items() if isinstance(metadata, dict) else ()
    return ", ".join(f"{name} {value:.4g}" for name, value in numbers if isinstance(value, int | float))


def _changes(run: kfp_server_api.V2beta1Run, seen: dict[str, str], steps: Mapping[str, str]) -> list[str]:
    """Return a line for each step whose state is another one than before, and note it in ``seen``."""
    lines = []
    for task in _details(run):
        name, state = _step(task, steps), str(task.state or "")
        key = str(task.task_id or name)
        if not name or state in ("", "RUNTIME_STATE_UNSPECIFIED", seen.get(key)):
            continue
        seen[key] = state
        took = ""
        if state in _ENDED and task.start_time and task.end_time and task.end_time > task.start_time:
            took = f" after {_minutes((task.end_time - task.start_time).total_seconds())}"
        lines.append(f"{name:<22} {_word(state)}{took}")
    return lines


def _details(run: kfp_server_api.V2beta1Run) -> list[kfp_server_api.V2beta1PipelineTaskDetail]:
    return list((run.run_details and run.run_details.task_details) or [])


def _states(run: kfp_server_api.V2beta1Run, steps: Mapping[str, str]) -> list[tuple[str, str]]:
    return [(name, str(task.state)) for task in _details(run) if (name := _step(task, steps))]


def _step(task: kfp_server_api.V2beta1PipelineTaskDetail, steps: Mapping[str, str]) -> str:
    return steps.get(_slug(str(task.display_name or "")), "")


def _slug(name: str) -> str:
    return "-".join(name.lower().replace("_", " ").split())


def _word(state: Any) -> str:
    return str(state or "pending").lower()


def _clock(started: float) -> str:
    return f"[{_minutes(time.monotonic() - started):>7}]"


def _minutes(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
