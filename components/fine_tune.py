"""The step that trains the backbone's last blocks, and keeps the result only if validation prefers it."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, packages_to_install=[], install_kfp_package=False)
def fine_tune(
    dataset: dsl.Input[dsl.Dataset],
    head: dsl.Input[dsl.Model],
    weights: str,
    num_blocks: int,
    epochs: int,
    learning_rate: float,
    seed: int,
    num_views: int,
    layer_decay: float,
    weight_decay: float,
    label_smoothing: float,
    mixup: float,
    ema_decay: float,
    augmentation: str,
    precision: str,
    model: dsl.Output[dsl.Model],
    fine_tune_metrics: dsl.Output[dsl.Metrics],
    cache: str = "",
    adversarial_training: str = "none",
    adversarial_epsilon: str = "2/255",
    clean_tolerance: float = 0.05,
):
    """Fine-tune the classifier made of backbone and head.

    Args:
        dataset: pictures, written by download_data.
        head: written by train_head.
        weights: the backbone's weights, as for extract_features.
        num_blocks: how many of the backbone's last blocks to train; 0 keeps the frozen classifier.
        epochs: passes over the training pictures, at most.
        learning_rate: highest rate of AdamW, of the head and the last block.
        seed: fixes order, augmentation and dropout.
        num_views: augmented views of each picture whose activations at the cut are kept; 0 makes new ones each epoch.
        layer_decay: the rate of each block is that of the next one times this, above 0 and at most 1.
        weight_decay: decoupled, 0 or more.
        label_smoothing: part of the target shared among all classes, 0 to below 1.
        mixup: alpha of the Beta distribution of shares; 0 mixes nothing.
        ema_decay: of the moving average of the weights that is kept, 0 (none) to below 1.
        augmentation: none, light or strong.
        precision: auto, float32, mixed_float16 or mixed_bfloat16.
        model: model.keras (pixels in [0, 1] to probabilities) and model.json (history, what was chosen).
        fine_tune_metrics: validation accuracy and log loss, of the head alone and after fine-tuning.
        cache: folder where views and checkpoints wait for the next try; empty takes one in the user's home.
        adversarial_training: none, fgsm (one step from a random start) or pgd; every epoch runs the whole network.
        adversarial_epsilon: L-infinity radius of these attacks, a fraction or k/255.
        clean_tolerance: validation accuracy that adversarial training may lose against the head, 0 to below 1.
    """
    given = locals()
    from pathlib import Path

    from graftflow.files import write_json
    from graftflow.recipes import Recipe
    from graftflow.seals import check_seals, sealed_work

    check_seals(dataset.path, head.path)  # before TensorFlow is loaded
    from graftflow.training import figures_of, write_model

    recipe = Recipe(**{field: given[field] for field in Recipe.__dataclass_fields__ if field in given})
    inputs = {"dataset_path": dataset.path, "head_path": head.path, "weights": weights, "cache": cache}
    with sealed_work(model.path) as (folder, finished):
        summary = write_model(folder, num_blocks=num_blocks, recipe=recipe, finished=finished, **inputs)
    model.metadata.update({"backbone": summary["backbone"]["name"], "chosen": summary["chosen"]})
    figures = figures_of(summary)
    for name, value in figures.items():
        fine_tune_metrics.log_metric(name, value)
    # KFP's cache hits only where the artifact's file exists.
    write_json(Path(fine_tune_metrics.path), figures)
