"""The step that gathers the shards of features into one table, every row at its picture's place."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, packages_to_install=[], install_kfp_package=False)
def merge_features(
    feature_shards: dsl.Input[list[dsl.Dataset]],
    features: dsl.Output[dsl.Dataset],
):
    """Put the rows of all shards together as one extraction would have written them, bit by bit.

    Args:
        feature_shards: written by extract_features, each shard once.
        features: one .npz a split (float32 features, int64 labels) and features.json; its metadata name the
            backbone, the SHA-256 of its weights, its input size and its preprocessing, and say how many pictures were
            computed and how many came from the cache.

    Raises:
        InputError: a shard is missing, there twice or of another extraction.
    """
    from graftflow.feature_shards import merge_shards
    from graftflow.seals import check_seals, sealed_directory

    paths = [shard.path for shard in feature_shards]
    check_seals(*paths)
    with sealed_directory(features.path) as folder:
        summary = merge_shards(folder, shard_paths=paths)
    features.metadata.update(summary["backbone"])
    features.metadata["pictures"] = sum(summary["counts"].values())
    features.metadata.update({"computed": summary["computed"], "cached": summary["cached"]})
