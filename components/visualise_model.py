"""The step that draws what the networks want to see, what their layers see, and what their answers rest on."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, packages_to_install=[], install_kfp_package=False)
def visualise_model(
    dataset: dsl.Input[dsl.Dataset],
    model: dsl.Input[dsl.Model],
    backbone_weights: str,
    ideal_classes: str,
    steps: int,
    seed: int,
    visuals: dsl.Output[dsl.Artifact],
    features: dsl.Input[dsl.Dataset] = None,
    evaluation: dsl.Input[dsl.Artifact] = None,
):
    """Draw ideal pictures of classes, and show what the model's answers rest on.

    Args:
        dataset: written by download_data.
        model: written by fine_tune.
        backbone_weights: where the ImageNet classifier comes from: imagenet, an http(s) address or a
            file; none leaves its pictures out.
        ideal_classes: ImageNet classes to draw, comma-separated, such as "Siamese cat, zebra".
        steps: gradient steps for each of them, at least 1; the model's own classes take half.
        seed: fixes the noise that pictures start from and the choice of test pictures.
        visuals: visuals.json, its JPEGs and animations.
        features: written by extract_features; without it there is no map and no nearest pictures.
        evaluation: written by evaluate; its mistakes are explained and looked up.
    """
    from graftflow.seals import check_seals, sealed_directory

    optional = [artifact.path for artifact in (features, evaluation) if artifact]
    check_seals(dataset.path, model.path, *optional)
    from graftflow.visualisation import write_visuals

    names = [name.strip() for name in ideal_classes.split(",") if name.strip()]
    with sealed_directory(visuals.path) as folder:
        found = write_visuals(
            folder,
            model_path=model.path,
            dataset_path=dataset.path,
            features_path=features.path if features else None,
            evaluation_path=evaluation.path if evaluation else None,
            backbone_weights=backbone_weights,
            ideal_classes=names,
            steps=steps,
            seed=seed,
        )
    visuals.metadata["ideal_pictures"] = len(found["ideal"])
    visuals.metadata["explained"] = len(found["explanations"]["pictures"])
    visuals.metadata["maps_depend_on_weights"] = found["explanations"]["sanity"]["passed"]
    visuals.metadata["note"] = found["note"]
