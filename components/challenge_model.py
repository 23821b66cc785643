"""The step that shows the model pictures unlike its training data and says what it makes of them."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, packages_to_install=[], install_kfp_package=False)
def challenge_model(
    dataset: dsl.Input[dsl.Dataset],
    model: dsl.Input[dsl.Model],
    source: str,
    num_pictures: int,
    seed: int,
    challenge: dsl.Output[dsl.Artifact],
    challenge_page: dsl.Output[dsl.HTML],
    challenge_metrics: dsl.Output[dsl.Metrics],
    mirrors: str = "",
    cache: str = "",
):
    """Measure accuracy, confidence and strangeness on pictures from another source.

    Args:
        dataset: written by download_data; what the model was trained on.
        model: written by fine_tune.
        source: "closeups", "digits", "directory:PATH" (class folders or loose pictures),
            "archive:PATH-or-URL" or "tfds:NAME".
        num_pictures: how many of its pictures at most, at least 1; each class gives its share.
        seed: fixes the sample and the bootstrap.
        challenge: challenge.json (all figures), scores.csv, challenge.html and pictures/*.jpg.
        challenge_page: the page, pictures inside, under 2 MB.
        challenge_metrics: accuracy on shared classes, mean confidence, and AUC and rejected share of each score.
        mirrors: addresses of folders, tried where a source's own address lacks its file.
        cache: folder that outlives the step; empty keeps nothing.
    """
    from pathlib import Path

    from graftflow.files import write_json
    from graftflow.seals import check_seals, sealed_directory
    from graftflow.sources import check_mirrors, parse_source

    parse_source(source)  # before TensorFlow is loaded: a typing error shows at once
    check_seals(dataset.path, model.path)
    from graftflow.challenges import write_challenge
    from graftflow.report.challenges import key_figures, write_page

    with sealed_directory(challenge.path) as folder:
        write_challenge(
            folder,
            source=source,
            dataset_path=dataset.path,
            model_path=model.path,
            num_pictures=num_pictures,
            seed=seed,
            cache=cache or None,
            mirrors=check_mirrors(mirrors),
        )
    write_page(challenge_page.path, challenge_path=challenge.path)
    figures = key_figures(challenge.path)
    for name, value in figures.items():
        challenge_metrics.log_metric(name, value)
    # KFP's cache hits only where the artifact's file exists.
    write_json(Path(challenge_metrics.path), figures)
