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

    The run, the commit and the image that go into the model are read from the environment (``GRAFTFLOW_RUN_ID``,
    ``GRAFTFLOW_COMMIT``, ``GRAFTFLOW_IMAGE``): as parameters they would keep KFP from ever reusing an export. One from
    the cache tells of the run that made it.

    Args:
        dataset: written by download_data; its first validation pictures are the warm-up requests.
        model: written by fine_tune.
        version: number of the version folder; 0 takes the seconds since 1970.
        saved_model: <version>/ with the signatures serving_default, pixels and ranked, and export.json;
            <version>/assets.extra/lineage.json says where the model comes from, and so does the metadata.
    """
    from graftflow.lineages import metadata_of, read_lineage, read_origin
    from graftflow.seals import check_seals, sealed_directory

    check_seals(dataset.path, model.path)
    from graftflow.export import write_saved_model

    with sealed_directory(saved_model.path) as folder:
        paths = {"model_path": model.path, "dataset_path": dataset.path}
        summary = write_saved_model(folder, **paths, version=version, origin=read_origin())
        lineage = read_lineage(folder / str(summary["version"]))
    saved_model.metadata.update(
        {
            "framework": "tensorflow",
            "version": str(summary["version"]),
            "sha256": summary["sha256"],
            "classes": len(summary["classes"]),
            **metadata_of(lineage),
        }
    )
