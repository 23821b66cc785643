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
    head_type: str,
    class_weight: str,
    fine_tune_blocks: int,
    fine_tune_epochs: int,
    fine_tune_views: int,
    learning_rate: float,
    layer_decay: float,
    weight_decay: float,
    label_smoothing: float,
    mixup: float,
    ema_decay: float,
    augmentation: str,
    precision: str,
    adversarial_training: str,
    adversarial_epsilon: str,
    min_accuracy: float,
    min_robust_accuracy: float,
    robust_epsilon: str,
    epsilons: str,
    attack_steps: int,
    attack_pictures: int,
    ideal_classes: str,
    ideal_steps: int,
    version: int,
    store: str,
    model_name: str,
    label: str,
    mirrors: str,
    cache: str,
    shards: int,
) -> list[int]:
    """Check every setting of the run that can be checked without doing the work, and return the shards to extract.

    Every argument is the pipeline's parameter of that name, described there; its rule stands in ``graftflow.checks``.
    """
    from graftflow.checks import check_run

    check_run({name: value for name, value in locals().items() if name != "check_run"})
    return list(range(shards))
