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
):
    """Attack the model on test pictures with FGSM, PGD and gradient descent.

    Args:
        dataset: written by download_data.
        model: written by fine_tune.
        epsilons: L-infinity radii, comma-separated, such as "1/255, 4/255" or "0.03".
        steps: gradient steps of PGD, at least 1.
        num_pictures: how many test pictures are attacked, at least 1.
        target_class: class that targeted attacks aim at; empty takes each label's next class.
        seed: fixes the pictures and PGD's random start.
        adversarial: adversarial.json and triplets/*.png (original, perturbation, adversarial).
        robustness: accuracy before the attacks and, at the largest radius, under each of them.
    """
    from pathlib import Path

    from graftflow.epsilons import parse_epsilons
    from graftflow.files import atomic_directory, write_json

    radii = parse_epsilons(epsilons)  # before TensorFlow is loaded: a typing error shows at once
    from graftflow.adversarial import write_adversarial

    with atomic_directory(adversarial.path) as folder:
        found = write_adversarial(
            folder,
            model_path=model.path,
            dataset_path=dataset.path,
            num_pictures=num_pictures,
            epsilons=radii,
            steps=steps,
            target_class=target_class,
            seed=seed,
        )
    figures = {
        "clean_accuracy": found["clean_accuracy"],
        "largest_epsilon_255": found["epsilons"][-1],
        "worst_case_accuracy": found["worst_case"]["accuracy"][-1],
        "descent_success": found["descent"]["success"],
    }
    for attack in found["attacks"]:
        kind = "_targeted" if attack["targeted"] else ""
        figures[f"{attack['name'].lower()}{kind}_accuracy"] = attack["accuracy"][-1]
    for name, value in figures.items():
        robustness.log_metric(name, float(value))
    # KFP's cache hits only where the artifact's file exists.
    write_json(Path(robustness.path), figures)
