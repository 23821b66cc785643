"""The step that measures, on untouched pictures, the very model that will be served."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, packages_to_install=[], install_kfp_package=False)
def evaluate(
    dataset: dsl.Input[dsl.Dataset],
    saved_model: dsl.Input[dsl.Model],
    seed: int,
    evaluation: dsl.Output[dsl.Artifact],
    test_metrics: dsl.Output[dsl.Metrics],
    classification: dsl.Output[dsl.ClassificationMetrics],
) -> float:
    """Send the test split's encoded pictures through the exported model.

    Args:
        dataset: written by download_data.
        saved_model: written by export_model.
        seed: fixes the bootstrap.
        evaluation: evaluation.json (metrics with 95 % intervals), predictions.csv and mistakes/.
        test_metrics: accuracy, log loss, AUC and calibration error.
        classification: confusion matrix and ROC curve.

    Returns:
        The accuracy on the test split, a fraction: what the gate before deploy_model compares. It is the only
        unnamed output because kfp.local skips a gate on a named one.
    """
    from pathlib import Path

    from graftflow.files import write_json
    from graftflow.seals import check_seals, sealed_directory

    check_seals(dataset.path, saved_model.path)  # before TensorFlow is loaded
    from graftflow.evaluation import write_evaluation

    with sealed_directory(evaluation.path) as folder:
        summary = write_evaluation(
            folder, saved_model_path=saved_model.path, dataset_path=dataset.path, seed=seed
        )
    figures = {
        name: metric["value"] for name, metric in summary["metrics"].items() if metric["value"] is not None
    }
    for name, value in figures.items():
        test_metrics.log_metric(name, value)
    classification.log_confusion_matrix(summary["classes"], summary["confusion"])
    roc = summary["roc"]
    classification.log_roc_curve(roc["false_positive_rate"], roc["true_positive_rate"], roc["threshold"])
    # KFP's cache hits only where the artifacts' files exist.
    write_json(Path(test_metrics.path), figures)
    write_json(Path(classification.path), {"confusion": summary["confusion"], "roc": roc})
    return figures["accuracy"]
