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
    model: dsl.Output[dsl.Model],
    fine_tune_metrics: dsl.Output[dsl.Metrics],
):
    """Fine-tune the classifier made of backbone and head.

    Args:
        dataset: pictures, written by download_data.
        head: written by train_head.
        weights: the backbone's weights, as for extract_features.
        num_blocks: how many of the backbone's last blocks to train; 0 keeps the frozen classifier.
        epochs: passes over the training pictures, at most.
        learning_rate: of Adam.
        seed: fixes order, augmentation and dropout.
        model: model.keras (pixels in [0, 1] to probabilities) and model.json (history, what was chosen).
        fine_tune_metrics: validation accuracy and log loss, of the head alone and after fine-tuning.
    """
    from pathlib import Path

    from graftflow.files import atomic_directory, write_json
    from graftflow.training import write_model

    with atomic_directory(model.path) as folder:
        summary = write_model(
            folder,
            dataset_path=dataset.path,
            head_path=head.path,
            weights=weights,
            num_blocks=num_blocks,
            epochs=epochs,
            learning_rate=learning_rate,
            seed=seed,
        )
    model.metadata.update({"backbone": summary["backbone"]["name"], "chosen": summary["chosen"]})
    figures = {f"head_{name}": value for name, value in summary["head"].items()}
    for name, value in (summary["fine_tuned"] or {}).items():
        figures[f"fine_tuned_{name}"] = value
    for name, value in figures.items():
        fine_tune_metrics.log_metric(name, value)
    # KFP's cache hits only where the artifact's file exists.
    write_json(Path(fine_tune_metrics.path), figures)
