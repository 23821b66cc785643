"""The graph that compares backbones: labelled pictures in, a table of what each backbone is worth out."""

from typing import Any

from kfp import dsl

from components.check_comparison import check_comparison
from components.compare_backbones import compare_backbones as compare
from components.download_data import download_data
from components.measure_backbone import measure_backbone
from pipelines.placement import place
from pipelines.settings import Settings

NAME = "compare-backbones"
STEPS = ("check_comparison", "download_data", "measure_backbone", "compare_backbones")


def build(settings: Settings, *, parallelism: int | None = None) -> Any:
    """Return the pipeline for a cluster (or this machine) described by ``settings``.

    A step that the settings do not know is placed like the one that does the same work: measure_backbone like
    extract_features, on a GPU where that is.

    Args:
        settings: where the steps run.
        parallelism: how many backbones are measured at once; None leaves it to the cluster. On one machine it must be
            1: their times would contend.
    """

    @dsl.pipeline(name=NAME, display_name="graftflow: compare backbones")
    def compare_backbones(
        dataset: str = "closeups",
        backbones: str = "efficientnet_lite0, mobilenetv3large, mobilenetv2, efficientnetb0",
        seed: int = 0,
        validation_fraction: float = 0.15,
        test_fraction: float = 0.15,
        mirrors: str = "",
        cache: str = "",
        fingerprint: str = "",
    ):
        """Put a linear head on each of several backbones and measure which one to take.

        Args:
            dataset: closeups, digits, directory:PATH, archive:PATH-or-URL or tfds:NAME.
            backbones: names separated by commas, each with =weights where they are not ImageNet's own from Keras,
                e.g. efficientnet_lite0, vgg16=/weights/vgg16.h5, mobilenetv2=none.
            seed: fixes splits and intervals.
            validation_fraction: part of the pictures that chooses, 0 to 1.
            test_fraction: part of the pictures that the backbones are compared on, 0 to 1.
            mirrors: addresses that are tried where the data's own does not answer, separated by commas.
            cache: folder that outlives the steps, for downloads and features; empty for the default.
            fingerprint: any text that changes when the data behind `dataset` does, so that KFP's cache notices.
        """
        checked = check_comparison(
            dataset=dataset,
            backbones=backbones,
            seed=seed,
            validation_fraction=validation_fraction,
            test_fraction=test_fraction,
        ).set_display_name("Check settings")
        data = (
            download_data(
                source=dataset,
                seed=seed,
                validation_fraction=validation_fraction,
                test_fraction=test_fraction,
                fingerprint=fingerprint,
                mirrors=mirrors,
                cache=cache,
            )
            .set_display_name("Download data")
            .after(checked)
        )
        with dsl.ParallelFor(checked.output, name="each backbone", parallelism=parallelism) as backbone:
            measured = measure_backbone(
                dataset=data.outputs["dataset"], backbone=backbone, seed=seed, cache=cache
            ).set_display_name("Measure backbone")
            # What it finds is of the day: times, and whether weights can be reached. The features are in the cache.
            measured.set_caching_options(False)
        compared = compare(
            measurements=dsl.Collected(measured.outputs["measurement"]), seed=seed
        ).set_display_name("Compare backbones")

        place(checked, settings, like="check_settings")
        place(data, settings)
        place(measured, settings, like="extract_features")
        place(compared, settings, like="write_report")

    return compare_backbones
