"""The step that puts everything a person wants to see onto one page."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, packages_to_install=[], install_kfp_package=False)
def write_report(
    dataset: dsl.Input[dsl.Dataset],
    features: dsl.Input[dsl.Dataset],
    head: dsl.Input[dsl.Model],
    model: dsl.Input[dsl.Model],
    saved_model: dsl.Input[dsl.Model],
    evaluation: dsl.Input[dsl.Artifact],
    adversarial: dsl.Input[dsl.Artifact],
    visuals: dsl.Input[dsl.Artifact],
    min_accuracy: float,
    min_robust_accuracy: float,
    robust_epsilon: str,
    report: dsl.Output[dsl.HTML],
):
    """Write one self-contained HTML page.

    Args:
        dataset: written by download_data.
        features: written by extract_features.
        head: written by train_head.
        model: written by fine_tune.
        saved_model: written by export_model.
        evaluation: written by evaluate.
        adversarial: written by generate_adversarial.
        visuals: written by visualise_model.
        min_accuracy: the gate's threshold, a fraction.
        min_robust_accuracy: threshold of the gate on accuracy under attack, a fraction; 0 for none.
        robust_epsilon: L-infinity radius of that gate, a fraction or k/255.
        report: the page, pictures inside, under 3 MB.
    """
    from graftflow.files import sha256_file
    from graftflow.report import write_report as write
    from graftflow.seals import check_seals

    artifacts = {
        "dataset": dataset.path,
        "features": features.path,
        "head": head.path,
        "model": model.path,
        "saved_model": saved_model.path,
        "evaluation": evaluation.path,
        "adversarial": adversarial.path,
        "visuals": visuals.path,
    }
    check_seals(*artifacts.values())
    write(
        report.path,
        artifacts=artifacts,
        min_accuracy=min_accuracy,
        min_robust_accuracy=min_robust_accuracy,
        robust_epsilon=robust_epsilon,
    )
    report.metadata["sha256"] = sha256_file(report.path)  # one file has no room for a seal
