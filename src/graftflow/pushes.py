"""From an exported version to one that is served: checked by a server, published, labelled; or nothing changed."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from graftflow import lineages, push_checks, releases
from graftflow.deployment import deploy, verified_export
from graftflow.errors import InputError
from graftflow.files import read_json
from graftflow.store_files import StoreFiles


def push(
    saved_model: str | Path,
    *,
    evaluation: str | Path,
    dataset: str | Path,
    store: str,
    model_name: str,
    label: str = "stable",
    timeout: float = push_checks.TIMEOUT,
) -> dict[str, Any]:
    """Let a model server judge an exported version, then publish it in a store and give it a label.

    Until the server has answered as evaluated nothing is written to the store; what was served is served on.

    Args:
        saved_model: the ``saved_model`` artifact.
        evaluation: the ``evaluation`` artifact of it.
        dataset: the ``dataset`` artifact that both are of.
        store: a local folder or mounted volume, or an fsspec URI (``gs://…``, ``s3://…``).
        model_name: the model's folder in the store and its name on the server.
        label: ``stable`` or ``canary``.
        timeout: seconds that the server may take.

    Returns:
        What ``deployment.json`` says: ``uri``, ``version``, ``status`` (``published`` or ``already there``),
        ``model_name``, ``label``, ``previous`` (the version that had the label, or None), ``validation`` and
        ``lineage``: the version's, with the figures on the test pictures (None where it has none).

    Raises:
        InputError: as :func:`graftflow.push_checks.check_push`, :func:`graftflow.deployment.deploy` and
            :func:`graftflow.releases.release`.
    """
    version, folder, digest = verified_export(saved_model)
    releases.check_release(store=store, model_name=model_name, version=int(version), label=label)
    metrics = _metrics(Path(evaluation))
    lineage = lineages.with_test_figures(lineages.read_lineage(folder), metrics)
    validation = push_checks.check_push(
        saved_model, evaluation=evaluation, dataset=dataset, model_name=model_name, timeout=timeout
    )
    published = deploy(saved_model, store=store, model_name=model_name)
    released = releases.release(
        store=store,
        model_name=model_name,
        version=int(version),
        label=label,
        facts={
            "accuracy": float(metrics["accuracy"]["value"]),
            "pictures": validation.pictures,
            "largest_difference": validation.largest_difference,
            "metrics": metrics,
            "sha256": digest,
        },
    )
    if label == "stable":
        _tell_of_higher(store, model_name, int(version))
    return {
        "uri": published.uri,
        "version": version,
        "status": published.status,
        "model_name": model_name,
        "label": label,
        "previous": None if released.replaced is None else str(released.replaced),
        "validation": asdict(validation),
        "lineage": lineage,
    }


def _tell_of_higher(store: str, model_name: str, version: int) -> None:
    """Say who does not serve a version that is not the highest: exports take the time, and clocks are set back."""
    highest = StoreFiles(store).versions(model_name)[-1]
    if highest > version:
        print(
            f"{model_name} version {version} is stable, but version {highest} in the store is higher (was a clock "
            f"set back?): servers that follow models.config serve {version}; one that takes the newest of a folder "
            f"(KServe, --model_base_path) serves {highest} on, until it is removed or a run has VERSION={highest + 1}",
            flush=True,
        )


def _metrics(evaluation: Path) -> dict[str, dict[str, float]]:
    """The figures on the test pictures and their intervals, for the history; the accuracy is among them."""
    file = evaluation / "evaluation.json"
    try:
        metrics = dict(read_json(file)["metrics"])
        float(metrics["accuracy"]["value"])
        return metrics
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"evaluation must hold an evaluation.json with an accuracy. Received: {file} ({type(error).__name__})"
        ) from error
