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
    min_accuracy: float,
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
) -> int:
    """Check every setting of the run that can be checked without doing the work, and return how many.

    Args:
        dataset: see the pipeline, also for all others.
        backbone: a name of the table of backbones.
        weights: imagenet, none, an address, or a file that exists.
        seed: 0 or more.
        validation_fraction: between 0 and 1.
        test_fraction: between 0 and 1; together with validation_fraction below 1.
        head_type: linear or mlp.
        class_weight: none or balanced.
        fine_tune_blocks: 0 or more.
        fine_tune_epochs: 1 or more.
        fine_tune_views: 0 or more.
        learning_rate: above 0.
        layer_decay: above 0, at most 1.
        weight_decay: 0 or more.
        label_smoothing: 0 to below 1.
        mixup: 0 or more.
        ema_decay: 0 to below 1.
        augmentation: none, light or strong.
        precision: auto, float32, mixed_float16 or mixed_bfloat16.
        min_accuracy: 0 to 1.
        epsilons: radii from 0 to 1, as fractions or k/255.
        attack_steps: 1 or more.
        attack_pictures: 1 or more.
        ideal_classes: names of ImageNet classes.
        ideal_steps: 1 or more.
        version: 0 or more.
        store: a folder or an address that a driver is installed for.
        model_name: letters, digits, dots, dashes and underscores.
        label: stable or canary.
        mirrors: addresses separated by commas or spaces.
        cache: a folder that can be written, or empty.
    """
    from graftflow.checks import check_run

    return check_run({name: value for name, value in locals().items() if name != "check_run"})
