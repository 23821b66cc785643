"""The step that attacks the model and counts how often it is fooled."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, packages_to_install=[], install_kfp_package=False)
def generate_adversarial(
    dataset: dsl.Input[dsl.Dataset],
    model: dsl.Input[dsl.Model],
    epsilons: str,
    steps: int,
    num_pictures: int,
    target_class: str,
    seed: int,
    adversarial: dsl.Output[dsl.Artifact],
    robustness: dsl.Output[dsl.Metrics],
    head: dsl.Input[dsl.Model] = None,
    evaluation: dsl.Input[dsl.Artifact] = None,
    backbone_weights: str = "imagenet",
    robust_epsilon: str = "",
) -> float:
    """Attack the model on test pictures, corrupt them, and check whether the figures can be believed.

    Args:
        dataset: written by download_data.
        model: written by fine_tune.
        epsilons: L-infinity radii, comma-separated, such as "1/255, 4/255" or "0.03".
        steps: gradient steps of iterated attacks, at least 1.
        num_pictures: how many test pictures are attacked, at least 1.
        target_class: class that targeted attacks aim at; empty takes each label's next class.
        seed: fixes the pictures, random starts and noise.
        adversarial: adversarial.json and triplets/*.png (original, perturbation, adversarial).
        robustness: accuracy before the attacks and, at the largest radius, under each of them.
        head: written by train_head; adds the classifier before fine-tuning to the transfer matrix.
        evaluation: written by evaluate; unchanged pictures must be predicted as they were there.
        backbone_weights: the weights that the head was trained with.
        robust_epsilon: radius of the figure that is returned; it is attacked too. Empty takes the largest.

    Returns:
        The worst-case accuracy at robust_epsilon, a fraction; 0 where a check of the figures failed.
    """
    from pathlib import Path

    from graftflow.epsilons import parse_epsilons
    from graftflow.files import write_json
    from graftflow.seals import check_seals, sealed_directory

    radii = parse_epsilons(",".join([epsilons, robust_epsilon]))  # before TensorFlow: an error shows at once
    gate = parse_epsilons(robust_epsilon)[0] if robust_epsilon else None
    optional = [artifact.path for artifact in (head, evaluation) if artifact]
    check_seals(dataset.path, model.path, *optional)
    from graftflow.adversarial import key_figures, robust_accuracy, write_adversarial

    with sealed_directory(adversarial.path) as folder:
        found = write_adversarial(
            folder,
            model_path=model.path,
            dataset_path=dataset.path,
            num_pictures=num_pictures,
            epsilons=radii,
            steps=steps,
            target_class=target_class,
            seed=seed,
            head_path=head.path if head else None,
            weights=backbone_weights,
            evaluation_path=evaluation.path if evaluation else None,
        )
    figures = {**key_figures(found), "robust_accuracy": robust_accuracy(found, gate)}
    for name, value in figures.items():
        robustness.log_metric(name, value)
    # KFP's cache hits only where the artifact's file exists.
    write_json(Path(robustness.path), figures)
    return figures["robust_accuracy"]
