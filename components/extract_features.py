"""The step that sends every picture through the frozen backbone once."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, packages_to_install=[], install_kfp_package=False)
def extract_features(
    dataset: dsl.Input[dsl.Dataset],
    backbone: str,
    weights: str,
    features: dsl.Output[dsl.Dataset],
    cache: str = "",
    fingerprint: str = "",
):
    """Compute the features of train, validation and test pictures; only those the cache does not hold are new work.

    Args:
        dataset: pictures, written by download_data.
        backbone: name of the pretrained network, e.g. efficientnet_lite0, vgg16, resnet50.
        weights: imagenet, none (random, for tests), an http(s) address or the path of a weights file.
        features: one .npz a split (float32 features, int64 labels) and features.json; its metadata name the
            backbone, the SHA-256 of its weights, its input size and its preprocessing, and say how many pictures were
            computed and how many came from the cache.
        cache: folder that outlives the step, for the features of each picture; empty takes .cache/graftflow in the
            home folder.
        fingerprint: any text that changes when a weights file does, so that KFP's cache notices.
    """
    from graftflow.features import write_features
    from graftflow.files import atomic_directory

    with atomic_directory(features.path) as folder:
        summary = write_features(
            folder, dataset_path=dataset.path, backbone=backbone, weights=weights, cache=cache
        )
    features.metadata.update(summary["backbone"])
    features.metadata["pictures"] = sum(summary["counts"].values())
    features.metadata.update({"computed": summary["computed"], "cached": summary["cached"]})
