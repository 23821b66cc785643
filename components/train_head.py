"""The step that fits the new head on the features."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, packages_to_install=[], install_kfp_package=False)
def train_head(
    features: dsl.Input[dsl.Dataset],
    head: dsl.Output[dsl.Model],
    head_metrics: dsl.Output[dsl.Metrics],
    head_type: str = "linear",
    class_weight: str = "none",
    seed: int = 0,
):
    """Fit a head over a path of L2 penalties, keep the best on held-out pictures and measure its learning curve.

    Args:
        features: written by extract_features.
        head: head.npz (kernel and bias of each layer) and head.json (the whole path, what was chosen, the learning
            curve).
        head_metrics: validation accuracy and log loss of the chosen head.
        head_type: linear (logistic regression) or mlp (one hidden layer).
        class_weight: none, or balanced (each class counts alike, however many pictures it has).
        seed: fixes the folds that choose the penalty, an mlp's start and the parts of the learning curve.
    """
    from pathlib import Path

    from graftflow.files import write_json
    from graftflow.seals import check_seals, sealed_directory

    check_seals(features.path)
    from graftflow.heads import write_head

    with sealed_directory(head.path) as folder:
        summary = write_head(
            folder,
            features_path=features.path,
            head_type=head_type,
            class_weight=class_weight,
            seed=seed,
        )
    head.metadata.update({name: summary[name] for name in ("type", "class_weight", "chosen_c")})
    head.metadata["backbone"] = summary["backbone"]["name"]
    figures = {
        "validation_accuracy": summary["validation_accuracy"],
        "validation_log_loss": summary["validation_log_loss"],
    }
    for name, value in figures.items():
        head_metrics.log_metric(name, value)
    # KFP's cache hits only where the artifact's file exists.
    write_json(Path(head_metrics.path), figures)
