"""The step that ranks measured backbones on the same test pictures."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, packages_to_install=[], install_kfp_package=False)
def compare_backbones(
    measurements: dsl.Input[list[dsl.Artifact]],
    seed: int,
    comparison: dsl.Output[dsl.Artifact],
    comparison_page: dsl.Output[dsl.HTML],
) -> str:
    """Compare every measured backbone with the best one, picture by picture.

    Args:
        measurements: written by measure_backbone, one a backbone.
        seed: fixes the bootstrap.
        comparison: comparison.json: the measurements, best first, each with its paired difference to the best.
        comparison_page: the table and its charts, self-contained.

    Returns:
        The best backbone, as measure_backbone took it.

    Raises:
        InputError: no backbone could be measured.
    """
    from graftflow.comparison_pages import refuse_nothing_measured, summary, write_comparison
    from graftflow.seals import check_seals, sealed_directory

    paths = [measurement.path for measurement in measurements]
    check_seals(*paths)
    with sealed_directory(comparison.path) as folder:
        result = write_comparison(
            folder,
            comparison_page.path,
            measurement_paths=paths,
            seed=seed,
        )
    refuse_nothing_measured(result)
    comparison.metadata.update(
        {"best": result["best"], "fastest": result["fastest"], "summary": summary(result)}
    )
    return result["best"]
