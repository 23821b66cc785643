"""The step that fits the new head on the features."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, packages_to_install=[], install_kfp_package=False)
def train_head(
    features: dsl.Input[dsl.Dataset],
    head: dsl.Output[dsl.Model],
    head_metrics: dsl.Output[dsl.Metrics],
):
    """Fit logistic regression over a path of L2 penalties and keep the best on validation.

    Args:
        features: written by extract_features.
        head: head.npz (kernel, bias) and head.json (the whole path, what was chosen).
        head_metrics: validation accuracy and log loss of the chosen head.
    """
    from pathlib import Path

    from graftflow.files import atomic_directory, write_json
    from graftflow.heads import write_head

    with atomic_directory(head.path) as folder:
        summary = write_head(folder, features_path=features.path)
    head.metadata.update({"backbone": summary["backbone"]["name"], "chosen_c": summary["chosen_c"]})
    figures = {
        "validation_accuracy": summary["validation_accuracy"],
        "validation_log_loss": summary["validation_log_loss"],
    }
    for name, value in figures.items():
        head_metrics.log_metric(name, value)
    # KFP's cache hits only where the artifact's file exists.
    write_json(Path(head_metrics.path), figures)
