"""The step that refuses a bad setting of a comparison, and lists the backbones to measure."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, packages_to_install=[], install_kfp_package=False)
def check_comparison(
    dataset: str,
    backbones: str,
    seed: int,
    validation_fraction: float,
    test_fraction: float,
) -> list:
    """Check every setting of the comparison that can be checked without doing the work.

    Args:
        dataset: see the pipeline, also for all others.
        backbones: names of the table, separated by commas, each with =weights where they are not ImageNet's own.
        seed: 0 or more.
        validation_fraction: between 0 and 1.
        test_fraction: between 0 and 1; together with validation_fraction below 1.

    Returns:
        The backbones, each as measure_backbone takes it.
    """
    from graftflow.backbone_measurements import check_comparison as check

    candidates = check(
        {
            "dataset": dataset,
            "backbones": backbones,
            "seed": seed,
            "validation_fraction": validation_fraction,
            "test_fraction": test_fraction,
        }
    )
    return [candidate.name for candidate in candidates]
