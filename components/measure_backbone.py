"""The step that puts a head on one backbone, exports it, and measures what it is worth and what it costs."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, packages_to_install=[], install_kfp_package=False)
def measure_backbone(
    dataset: dsl.Input[dsl.Dataset],
    backbone: str,
    seed: int,
    measurement: dsl.Output[dsl.Artifact],
    cache: str = "",
):
    """Measure a linear head on a frozen backbone: accuracy, log loss, seconds, megabytes and milliseconds.

    Weights that cannot be had are a result, not a failure: the artifact then holds the reason.

    Args:
        dataset: written by download_data.
        backbone: a name, e.g. vgg16, or name=weights, e.g. vgg16=/weights/vgg16.h5.
        seed: fixes the bootstrap.
        measurement: measurement.json and predictions.csv; its metadata say the figures or the error.
        cache: folder that outlives this step, for the features; empty for the default.
    """
    from graftflow.seals import check_seals, sealed_directory

    check_seals(dataset.path)
    from graftflow.backbone_measurements import write_measurement

    with sealed_directory(measurement.path) as folder:
        result = write_measurement(
            folder, dataset_path=dataset.path, backbone=backbone, seed=seed, cache=cache
        )
    measurement.metadata.update({"backbone": result["name"], "error": result["error"]})
    if result["error"]:
        print(f"{result['name']} could not be measured: {result['error']}")
        return
    measurement.metadata.update(
        {
            "accuracy": result["accuracy"]["value"],
            "log_loss": result["log_loss"]["value"],
            "milliseconds": result["milliseconds"]["single"],
            "megabytes": result["megabytes"],
        }
    )
