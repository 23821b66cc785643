"""Fine-tunes on several machines of a cluster: creates a TrainJob of Kubeflow's Trainer and follows it to its end.

``python -m pipelines.train_job --nodes 4 -- --num-blocks 2 --epochs 8``; what follows ``--`` are options of
``graftflow.training_workers``. The runtime is that of ``manifests/trainer``.
"""

import argparse
import json
import re
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

GROUP, VERSION, PLURAL = "trainer.kubeflow.org", "v1alpha1", "trainjobs"
RUNTIME = "graftflow-tensorflow"
FOLDER = "/mnt/training"
_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
# JobSet names pods <job>-node-0-<index>-<5 letters>, within the 63 letters of a label.
_LONGEST = 40
# So many requests in a row may fail before a job counts as lost from sight.
_TRIES = 5
_PATIENCE = 30  # seconds for one answer


class TrainJobError(ValueError):
    """A job that cannot be created, followed, or that failed; the message is one line."""


def build_job(
    name: str, *, num_nodes: int, options: Sequence[str] = (), image: str = "", gpus: int = 0
) -> dict[str, Any]:
    """Return a TrainJob.

    Args:
        name: of the job, of at most 40 small letters, digits and hyphens.
        num_nodes: machines, 1 or more.
        options: of ``graftflow.training_workers``, which may name other folders than those of the claim.
        image: of the workers; empty takes the runtime's, which is for CPUs.
        gpus: of each machine; 0 asks for none.

    Raises:
        TrainJobError: for a value out of its range.
    """
    if not _NAME.fullmatch(name) or len(name) > _LONGEST:
        raise TrainJobError(
            f"name must be at most {_LONGEST} small letters, digits and hyphens, a letter first. Received: '{name}'"
        )
    if num_nodes < 1:
        raise TrainJobError(f"nodes must be a whole number from 1. Received: {num_nodes}")
    if gpus < 0:
        raise TrainJobError(f"gpus must be a whole number from 0. Received: {gpus}")
    if gpus and not image:
        raise TrainJobError(
            f"image must name the image for GPUs where gpus are asked for. Received: '{image}'"
        )
    trainer: dict[str, Any] = {
        "numNodes": num_nodes,
        "args": [
            f"--dataset={FOLDER}/dataset",
            f"--head={FOLDER}/head",
            f"--output={FOLDER}/{name}/model",
            f"--nodes={num_nodes}",
            f"--hosts={name}-node-0-{{index}}.{name}",
            *options,
        ],
    }
    if image:
        trainer["image"] = image
    if gpus:
        # These take the place of the runtime's.
        trainer["resourcesPerNode"] = {
            "requests": {"cpu": "4", "memory": "8Gi"},
            "limits": {"memory": "32Gi", "nvidia.com/gpu": str(gpus)},
        }
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "TrainJob",
        "metadata": {"name": name, "labels": {"app.kubernetes.io/part-of": "graftflow"}},
        "spec": {
            "runtimeRef": {"apiGroup": GROUP, "kind": "TrainingRuntime", "name": RUNTIME},
            "trainer": trainer,
        },
    }


def submit(api: Any, namespace: str, job: dict[str, Any]) -> None:
    """Create a job.

    Args:
        api: ``kubernetes.client.CustomObjectsApi``.
        namespace: where the runtime is.
        job: see :func:`build_job`.

    Raises:
        TrainJobError: where the cluster refuses it, or cannot be reached.
    """
    place = (GROUP, VERSION, namespace, PLURAL)
    _called(lambda: api.create_namespaced_custom_object(*place, job, _request_timeout=_PATIENCE), namespace)


def follow(
    api: Any,
    namespace: str,
    name: str,
    *,
    timeout: float,
    interval: float = 10.0,
    say: Callable[[str], None] = print,
) -> None:
    """Tell how a job goes until it is complete; a lost connection is tried again.

    Args:
        api: ``kubernetes.client.CustomObjectsApi``.
        namespace: of the job.
        name: of the job.
        timeout: seconds after which the job counts as stuck; it goes on by itself.
        interval: seconds between two looks.
        say: takes a line for each change.

    Raises:
        TrainJobError: the job failed or was deleted, or takes longer than ``timeout``.
    """
    last, end, failures = "", time.monotonic() + timeout, 0
    place = (GROUP, VERSION, namespace, PLURAL, name)
    while True:
        try:
            found = _called(
                lambda: api.get_namespaced_custom_object(*place, _request_timeout=_PATIENCE), namespace
            )
            failures = 0
        except _UnreachableError:
            failures += 1
            if failures >= _TRIES:
                raise
            found = {}
        if found:
            line = _progress(found)
            if line != last:
                say(f"{name}: {line}")
                last = line
            if _holds(found, "Complete"):
                return
            if failed := _holds(found, "Failed"):
                raise TrainJobError(
                    f"The job '{name}' must end well. Received: {failed.get('reason', 'Failed')}: "
                    f"{_line(failed.get('message', 'no message'))} (kubectl -n {namespace} logs "
                    f"-l jobset.sigs.k8s.io/jobset-name={name} --tail=20)"
                )
        if time.monotonic() + interval > end:
            raise TrainJobError(
                f"The job '{name}' must end within {timeout:g} s; it goes on by itself. "
                f"Received: {last or 'no word of it'}"
            )
        time.sleep(interval)


class _UnreachableError(TrainJobError):
    """The cluster did not answer, or is out of order: another try may help."""


def _called(call: Callable[[], Any], namespace: str) -> dict[str, Any]:
    from kubernetes.client import ApiException
    from urllib3.exceptions import HTTPError

    try:
        answer = call()
    except ApiException as error:
        said = _reason(error)
        if error.status in (401, 403):
            message = f"Access to {PLURAL}.{GROUP} in the namespace '{namespace}' must be granted."
        elif error.status == 404 and said == "page not found":
            message = f"Kubeflow Trainer must be installed in the cluster ({PLURAL}.{GROUP}/{VERSION})."
        elif error.status == 404:
            message = "The job must still be there."
        elif error.status == 409:
            message = "The job's name must be new in its namespace."
        elif error.status in (400, 422):
            message = (
                "The cluster must accept the job; is the runtime there (kubectl apply -k manifests/trainer)?"
            )
        else:
            raise _UnreachableError(f"The cluster must answer. Received: {error.status} {said}") from error
        raise TrainJobError(f"{message} Received: {error.status} {said}") from error
    except (HTTPError, OSError) as error:
        raise _UnreachableError(
            f"The cluster must be reachable. Received: {type(error).__name__}: {_line(str(error))}"
        ) from error
    if not isinstance(answer, dict) or answer.get("kind") != "TrainJob":
        raise TrainJobError(
            f"The cluster must answer with a TrainJob. Received: {_line(str(answer))[:200]!r}"
        )
    return answer


def _reason(error: Any) -> str:
    text = error.body.decode(errors="replace") if isinstance(error.body, bytes) else str(error.body or "")
    try:
        return _line(str(json.loads(text)["message"]))
    except (ValueError, KeyError, TypeError):
        return _line(text).removeprefix("404 ")[:200] or str(error.reason)


def _line(text: str) -> str:
    return " ".join(text.split())


def _holds(job: dict[str, Any], kind: str) -> dict[str, Any]:
    """Return a condition that holds, else nothing."""
    conditions = job.get("status", {}).get("conditions", [])
    return next((c for c in conditions if c.get("type") == kind and c.get("status") == "True"), {})


def _progress(job: dict[str, Any]) -> str:
    state = next(
        (kind.lower() for kind in ("Complete", "Failed", "Suspended") if _holds(job, kind)), "running"
    )
    parts = job.get("status", {}).get("jobsStatus", [])
    counts = {kind: sum(int(part.get(kind) or 0) for part in parts) for kind in ("active", "ready", "failed")}
    if state == "running" and not any(counts.values()):
        return "created, no worker yet"
    told = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
    return f"{state}; jobs: {told}" if told else state


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, or 1 where the job was refused, failed or takes too long."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.train_job", description=__doc__)
    parser.add_argument("--name", default="fine-tune", help="of the job; default: %(default)s")
    parser.add_argument("--namespace", default="kubeflow", help="default: %(default)s")
    parser.add_argument("--nodes", type=int, default=2, help="machines; default: %(default)s")
    parser.add_argument("--gpus", type=int, default=0, help="of each machine; default: %(default)s")
    parser.add_argument("--image", default="", help="of the workers; default: the runtime's")
    parser.add_argument("--timeout", type=float, default=86400.0, help="seconds; default: %(default)g")
    parser.add_argument("--interval", type=float, default=10.0, help="seconds between looks; default: 10")
    parser.add_argument("--kubeconfig", default=None, help="default: $KUBECONFIG, or the pod's own account")
    parser.add_argument("--dry-run", action="store_true", help="print the job and create nothing")
    parser.add_argument("options", nargs="*", help="after --: options of graftflow.training_workers")
    given = parser.parse_args(arguments)
    try:
        job = build_job(
            given.name, num_nodes=given.nodes, options=given.options, image=given.image, gpus=given.gpus
        )
        if given.dry_run:
            print(json.dumps(job, indent=2))
            return 0
        api = _connect(given.kubeconfig)
        submit(api, given.namespace, job)
        print(f"{given.name}: created in {given.namespace}, {given.nodes} machines", flush=True)
        follow(api, given.namespace, given.name, timeout=given.timeout, interval=given.interval)
    except TrainJobError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{given.name}: the model is in the claim, under {given.name}/model")
    return 0


def _connect(kubeconfig: str | None) -> Any:
    from kubernetes import client, config

    try:
        config.load_config(config_file=kubeconfig) if kubeconfig else config.load_config()
    except (config.ConfigException, OSError) as error:
        raise TrainJobError(
            f"A cluster must be named by a kubeconfig, or by a pod's own account. Received: {_line(str(error))}"
        ) from error
    return client.CustomObjectsApi()


if __name__ == "__main__":
    sys.exit(main())
