"""The step that turns the classifier into a SavedModel for TensorFlow Serving."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, packages_to_install=[], install_kfp_package=False)
def export_model(
    dataset: dsl.Input[dsl.Dataset],
    model: dsl.Input[dsl.Model],
    version: int,
    saved_model: dsl.Output[dsl.Model],
):
    """Export, reload and compare with the original.

    Args:
        dataset: written by download_data; its first validation pictures are the warm-up requests.
        model: written by fine_tune.
        version: number of the version folder; 0 takes the seconds since 1970.
        saved_model: <version>/ with the signatures serving_default, pixels and ranked, and export.json.
    """
    from graftflow.export import write_saved_model
    from graftflow.files import atomic_directory

    with atomic_directory(saved_model.path) as folder:
        summary = write_saved_model(folder, model_path=model.path, dataset_path=dataset.path, version=version)
    saved_model.metadata.update(
        {
            "framework": "tensorflow",
            "version": str(summary["version"]),
            "sha256": summary["sha256"],
            "classes": len(summary["classes"]),
        }
    )
