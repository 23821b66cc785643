"""Publish the exported model in a model store, where a server picks it up."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, packages_to_install=[], install_kfp_package=False)
def deploy_model(
    saved_model: dsl.Input[dsl.Model],
    store: str,
    model_name: str,
    deployment: dsl.Output[dsl.Artifact],
):
    """Copy the exported version into ``<store>/<model_name>/<version>``, whole or not at all.

    A published version is never changed: the same content again is reported as ``already there``,
    another content under the same version fails the step.

    Args:
        saved_model: folder of ``export.json`` and ``<version>/`` (TensorFlow SavedModel).
        store: where models are kept: a mounted folder, ``gs://bucket/path``, ``s3://bucket/path``.
        model_name: the model's folder in the store and its name on the server.
        deployment: folder of ``deployment.json``: ``{"uri", "version", "status", "model_name"}``.

    Raises:
        graftflow.errors.InputError: where the artifact does not match its sha256, the version is
            there with another content, or the store cannot be written.
    """
    from pathlib import Path

    from graftflow.deployment import deploy
    from graftflow.files import atomic_directory, write_json

    published = deploy(saved_model.path, store=store, model_name=model_name)
    facts = {
        "uri": published.uri,
        "version": published.version,
        "status": published.status,
        "model_name": model_name,
    }
    with atomic_directory(Path(deployment.path)) as folder:
        write_json(folder / "deployment.json", facts)
    deployment.metadata.update(facts)
    print(f"{model_name} version {published.version}: {published.status} at {published.uri}")
