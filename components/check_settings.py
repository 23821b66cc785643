"""The step that refuses a bad setting before hours of work, wherever the run was started from."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, packages_to_install=[], install_kfp_package=False)
def check_settings(
    dataset: str,
    backbone: str,
    weights: str,
    seed: int,
    validation_fraction: float,
    test_fraction: float,
    fine_tune_blocks: int,
    fine_tune_epochs: int,
    learning_rate: float,
    min_accuracy: float,
    epsilons: str,
    attack_steps: int,
    attack_pictures: int,
    ideal_classes: str,
    ideal_steps: int,
    version: int,
    store: str,
    model_name: str,
) -> int:
    """Check every setting of the run that can be checked without doing the work.

    Args:
        dataset: see the pipeline, also for all others.
        backbone: a name of the table of backbones.
        weights: imagenet, none, an address, or a file that exists.
        seed: 0 or more.
        validation_fraction: between 0 and 1.
        test_fraction: between 0 and 1; together with validation_fraction below 1.
        fine_tune_blocks: 0 or more.
        fine_tune_epochs: 1 or more.
        learning_rate: above 0.
        min_accuracy: 0 to 1.
        epsilons: radii from 0 to 1, as fractions or k/255.
        attack_steps: 1 or more.
        attack_pictures: 1 or more.
        ideal_classes: names of ImageNet classes.
        ideal_steps: 1 or more.
        version: 0 or more.
        store: a folder or an address that a driver is installed for.
        model_name: letters, digits, dots, dashes and underscores.

    Returns:
        How many settings were checked.
    """
    from graftflow.checks import check_run

    settings = dict(locals())
    settings.pop("check_run")
    check_run(settings)
    return len(settings)
