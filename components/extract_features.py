"""The step that sends every picture through the frozen backbone once, one shard of them a task."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, packages_to_install=[], install_kfp_package=False)
def extract_features(
    dataset: dsl.Input[dsl.Dataset],
    backbone: str,
    weights: str,
    shard: int,
    num_shards: int,
    feature_shard: dsl.Output[dsl.Dataset],
    cache: str = "",
    fingerprint: str = "",
):
    """Compute the features of every num_shards-th picture; only those the cache does not hold are new work.

    Args:
        dataset: pictures, written by download_data.
        backbone: name of the pretrained network, e.g. efficientnet_lite0, vgg16, resnet50.
        weights: imagenet, none (random, for tests), an http(s) address or the path of a weights file.
        shard: which part of the pictures, from 0.
        num_shards: how many parts there are.
        feature_shard: one .npz a split (int64 places in the split, float32 features, int64 labels) and shard.json; its
            metadata name the backbone, the SHA-256 of its weights, its input size and its preprocessing, and say how
            many pictures were computed and how many came from the cache.
        cache: folder that outlives the step, for the features of each picture; empty takes .cache/graftflow in the
            home folder.
        fingerprint: any text that changes when a weights file does, so that KFP's cache notices.
    """
    from graftflow.seals import check_seals, sealed_directory

    check_seals(dataset.path)
    from graftflow.features import write_feature_shard
    from graftflow.passes import share_cores

    share_cores()
    with sealed_directory(feature_shard.path) as folder:
        summary = write_feature_shard(
            folder,
            dataset_path=dataset.path,
            backbone=backbone,
            weights=weights,
            shard=int(shard),  # an item of a list, which arrives as a float
            num_shards=num_shards,
            cache=cache,
        )
    feature_shard.metadata.update(summary["backbone"])
    feature_shard.metadata.update({name: summary[name] for name in ("shard", "num_shards")})
    feature_shard.metadata.update({name: summary[name] for name in ("computed", "cached")})
