"""Publish the exported model in a model store, where a server picks it up, once a server has passed it."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, packages_to_install=[], install_kfp_package=False)
def deploy_model(
    dataset: dsl.Input[dsl.Dataset],
    saved_model: dsl.Input[dsl.Model],
    evaluation: dsl.Input[dsl.Artifact],
    store: str,
    model_name: str,
    label: str,
    deployment: dsl.Output[dsl.Artifact],
):
    """Copy the exported version into ``<store>/<model_name>/<version>``, whole or not at all, and label it.

    First a server process loads it and is asked, over REST and gRPC, about test pictures: where it does not answer as
    ``evaluate`` did, nothing is published and every label stays. A published version is never changed: the same content
    again is reported as ``already there``, another content under the same version fails the step.

    Args:
        dataset: written by download_data; up to 32 pictures of its test split are asked about.
        saved_model: folder of ``export.json`` and ``<version>/`` (TensorFlow SavedModel).
        evaluation: written by evaluate; its ``predictions.csv`` is what the server must answer.
        store: where models are kept: a mounted folder, ``gs://bucket/path``, ``s3://bucket/path``. Its
            ``models.config`` tells a server what to load, its ``releases.json`` is the history of labels.
        model_name: the model's folder in the store and its name on the server.
        label: stable (served from now on) or canary (loaded beside the stable version).
        deployment: folder of ``deployment.json``: ``{"uri", "version", "status", "model_name", "label", "previous",
            "validation": {"pictures", "largest_difference", "rest", "grpc", "seconds"}, "lineage": the version's own,
            with the figures on the test pictures}``.

    Raises:
        graftflow.errors.InputError: where the artifact does not match its sha256, a server does not load it or answers
            otherwise, the version is there with another content, or the store cannot be written.
    """
    from pathlib import Path

    from graftflow.files import write_json
    from graftflow.lineages import metadata_of
    from graftflow.pushes import push
    from graftflow.seals import check_seals, sealed_directory

    check_seals(dataset.path, saved_model.path, evaluation.path)
    facts = push(
        saved_model.path,
        evaluation=evaluation.path,
        dataset=dataset.path,
        store=store,
        model_name=model_name,
        label=label,
    )
    with sealed_directory(Path(deployment.path)) as folder:
        write_json(folder / "deployment.json", facts)
    validation = facts["validation"]
    told = {name: facts[name] for name in ("uri", "version", "status", "model_name", "label")}
    deployment.metadata.update(told | {"largest_difference": validation["largest_difference"]})
    deployment.metadata.update(metadata_of(facts["lineage"]))
    print(
        f"{model_name} version {facts['version']}: {facts['status']} at {facts['uri']} as {label}; a server answered "
        f"{validation['pictures']} pictures as evaluated, within {validation['largest_difference']:.1e}"
    )
