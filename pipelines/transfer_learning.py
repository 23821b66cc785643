"""The graph: labelled pictures in, a served classifier and a report out."""

from typing import Any

from kfp import dsl

from components.check_settings import check_settings
from components.deploy_model import deploy_model
from components.download_data import download_data
from components.evaluate import evaluate
from components.export_model import export_model
from components.extract_features import extract_features
from components.fine_tune import fine_tune
from components.generate_adversarial import generate_adversarial
from components.merge_features import merge_features
from components.train_head import train_head
from components.visualise_model import visualise_model
from components.write_report import write_report
from pipelines.placement import place
from pipelines.settings import Settings

NAME = "transfer-learning"


def build(settings: Settings, *, parallelism: int | None = None) -> Any:
    """Return the pipeline for a cluster (or this machine) described by ``settings``.

    Args:
        settings: where the steps run.
        parallelism: how many shards of features are extracted at once; None leaves it to the cluster. On one machine
            it must be 1: they would contend for its cores and its memory.
    """

    @dsl.pipeline(name=NAME, display_name="graftflow: transfer learning")
    def transfer_learning(
        dataset: str = "closeups",
        backbone: str = "efficientnet_lite0",
        weights: str = "imagenet",
        seed: int = 0,
        validation_fraction: float = 0.15,
        test_fraction: float = 0.15,
        head_type: str = "linear",
        class_weight: str = "none",
        fine_tune_blocks: int = 2,
        fine_tune_epochs: int = 8,
        fine_tune_views: int = 2,
        learning_rate: float = 3e-5,
        layer_decay: float = 0.7,
        weight_decay: float = 1e-4,
        label_smoothing: float = 0.0,
        mixup: float = 0.0,
        ema_decay: float = 0.99,
        augmentation: str = "light",
        precision: str = "auto",
        adversarial_training: str = "none",
        adversarial_epsilon: str = "2/255",
        min_accuracy: float = 0.9,
        min_robust_accuracy: float = 0.0,
        robust_epsilon: str = "1/255",
        epsilons: str = "0.5/255, 1/255, 2/255, 4/255, 8/255",
        attack_steps: int = 10,
        attack_pictures: int = 32,
        attack_target: str = "",
        ideal_classes: str = "Siamese cat, zebra",
        ideal_steps: int = 128,
        version: int = 0,
        store: str = "/mnt/models",
        model_name: str = "graftflow",
        label: str = "stable",
        mirrors: str = "",
        cache: str = "",
        shards: int = 1,
        fingerprint: str = "",
    ):
        """Graft a new head onto a pretrained backbone, prove the result, and deploy it.

        Args:
            dataset: closeups, digits, directory:PATH, archive:PATH-or-URL or tfds:NAME.
            backbone: name of the pretrained network, e.g. efficientnet_lite0, vgg16, resnet50.
            weights: imagenet, none (random, for tests), an http(s) address or the path of a weights file.
            seed: fixes splits, training, attacks and pictures.
            validation_fraction: part of the pictures that chooses, 0 to 1.
            test_fraction: part of the pictures that only evaluate sees, 0 to 1.
            head_type: linear (logistic regression) or mlp (one hidden layer).
            class_weight: none, or balanced, which makes each class count alike, in the head and in fine-tuning.
            fine_tune_blocks: how many of the backbone's last blocks to train; 0 keeps it frozen.
            fine_tune_epochs: passes over the training pictures, at most.
            fine_tune_views: augmented views of each picture that the frozen part sees once; 0: new ones each epoch.
            learning_rate: highest rate of fine-tuning, of the head and the last block.
            layer_decay: the rate of each block is that of the next one times this, above 0 and at most 1.
            weight_decay: of fine-tuning, decoupled, 0 or more.
            label_smoothing: part of the target shared among all classes, 0 to below 1.
            mixup: alpha of mixup's Beta distribution; 0 mixes nothing.
            ema_decay: of the moving average of the weights that is kept, 0 (none) to below 1.
            augmentation: none, light or strong.
            precision: auto (16 bits on a GPU with tensor cores), float32, mixed_float16 or mixed_bfloat16.
            adversarial_training: none, fgsm (one step from a random start) or pgd (a few): blocks are trained on
                attacked pictures, which costs accuracy and the cached activations.
            adversarial_epsilon: L-infinity radius of these attacks, a fraction or k/255.
            min_accuracy: test accuracy, 0 to 1, below which nothing is deployed.
            min_robust_accuracy: accuracy under attack within robust_epsilon, 0 to 1, below which nothing is deployed;
                it counts as 0 where a check of the attacks failed.
            robust_epsilon: L-infinity radius of that gate, a fraction or k/255.
            epsilons: radii of the attacks in L-infinity, as fractions or k/255.
            attack_steps: steps of PGD.
            attack_pictures: how many test pictures are attacked.
            attack_target: class that targeted attacks aim at; empty takes each label's next class.
            ideal_classes: ImageNet classes to draw from noise, separated by commas.
            ideal_steps: steps of gradient ascent for each of them.
            version: number of the exported version; 0 takes the seconds since 1970.
            store: the model store: a folder, or an address such as gs://bucket/models.
            model_name: name of the model in the store and at the model server.
            label: of the version in the store: stable (served from now on) or canary (loaded beside the stable one).
            mirrors: addresses of folders, tried where a source's own address lacks its file.
            cache: folder where downloads, features and checkpoints wait for the next run; empty takes one in the home.
            shards: into how many parts the pictures go for the extraction of features, each a task of its own.
            fingerprint: any text that changes when the data behind `dataset` or the file behind `weights` does, so
                that KFP's cache notices; nothing else depends on it.
        """
        checked = check_settings(
            dataset=dataset,
            backbone=backbone,
            weights=weights,
            seed=seed,
            validation_fraction=validation_fraction,
            test_fraction=test_fraction,
            head_type=head_type,
            class_weight=class_weight,
            fine_tune_blocks=fine_tune_blocks,
            fine_tune_epochs=fine_tune_epochs,
            learning_rate=learning_rate,
            fine_tune_views=fine_tune_views,
            layer_decay=layer_decay,
            weight_decay=weight_decay,
            label_smoothing=label_smoothing,
            mixup=mixup,
            ema_decay=ema_decay,
            augmentation=augmentation,
            precision=precision,
            adversarial_training=adversarial_training,
            adversarial_epsilon=adversarial_epsilon,
            min_accuracy=min_accuracy,
            min_robust_accuracy=min_robust_accuracy,
            robust_epsilon=robust_epsilon,
            epsilons=epsilons,
            attack_steps=attack_steps,
            attack_pictures=attack_pictures,
            ideal_classes=ideal_classes,
            ideal_steps=ideal_steps,
            version=version,
            store=store,
            model_name=model_name,
            label=label,
            mirrors=mirrors,
            cache=cache,
            shards=shards,
        ).set_display_name("Check settings")
        data = (
            download_data(
                source=dataset,
                seed=seed,
                validation_fraction=validation_fraction,
                test_fraction=test_fraction,
                mirrors=mirrors,
                cache=cache,
                fingerprint=fingerprint,
            )
            .set_display_name("Download data")
            .after(checked)
        )
        with dsl.ParallelFor(checked.output, name="each shard", parallelism=parallelism) as shard:
            extracted = extract_features(
                dataset=data.outputs["dataset"],
                backbone=backbone,
                weights=weights,
                shard=shard,
                num_shards=shards,
                cache=cache,
                fingerprint=fingerprint,
            ).set_display_name("Extract features")
        features = merge_features(
            feature_shards=dsl.Collected(extracted.outputs["feature_shard"])
        ).set_display_name("Merge features")
        head = train_head(
            features=features.outputs["features"], head_type=head_type, class_weight=class_weight, seed=seed
        ).set_display_name("Train head")
        tuned = fine_tune(
            dataset=data.outputs["dataset"],
            head=head.outputs["head"],
            weights=weights,
            num_blocks=fine_tune_blocks,
            epochs=fine_tune_epochs,
            learning_rate=learning_rate,
            seed=seed,
            num_views=fine_tune_views,
            layer_decay=layer_decay,
            weight_decay=weight_decay,
            label_smoothing=label_smoothing,
            mixup=mixup,
            ema_decay=ema_decay,
            augmentation=augmentation,
            precision=precision,
            adversarial_training=adversarial_training,
            adversarial_epsilon=adversarial_epsilon,
            cache=cache,
        ).set_display_name("Fine-tune")
        exported = export_model(
            dataset=data.outputs["dataset"], model=tuned.outputs["model"], version=version
        ).set_display_name("Export model")
        evaluated = evaluate(
            dataset=data.outputs["dataset"],
            saved_model=exported.outputs["saved_model"],
            seed=seed,
        ).set_display_name("Evaluate")
        attacked = generate_adversarial(
            dataset=data.outputs["dataset"],
            model=tuned.outputs["model"],
            head=head.outputs["head"],
            evaluation=evaluated.outputs["evaluation"],
            backbone_weights=weights,
            epsilons=epsilons,
            robust_epsilon=robust_epsilon,
            steps=attack_steps,
            num_pictures=attack_pictures,
            target_class=attack_target,
            seed=seed,
        ).set_display_name("Generate adversarial samples")
        seen = visualise_model(
            dataset=data.outputs["dataset"],
            model=tuned.outputs["model"],
            features=features.outputs["features"],
            evaluation=evaluated.outputs["evaluation"],
            backbone_weights=weights,
            ideal_classes=ideal_classes,
            steps=ideal_steps,
            seed=seed,
        ).set_display_name("Visualise model")
        reported = write_report(
            dataset=data.outputs["dataset"],
            features=features.outputs["features"],
            head=head.outputs["head"],
            model=tuned.outputs["model"],
            saved_model=exported.outputs["saved_model"],
            evaluation=evaluated.outputs["evaluation"],
            adversarial=attacked.outputs["adversarial"],
            visuals=seen.outputs["visuals"],
            min_accuracy=min_accuracy,
            min_robust_accuracy=min_robust_accuracy,
            robust_epsilon=robust_epsilon,
        ).set_display_name("Write report")
        with (
            dsl.If(evaluated.outputs["Output"] >= min_accuracy, name="accurate enough"),
            dsl.If(attacked.outputs["Output"] >= min_robust_accuracy, name="robust enough"),
        ):
            deployed = deploy_model(
                dataset=data.outputs["dataset"],
                saved_model=exported.outputs["saved_model"],
                evaluation=evaluated.outputs["evaluation"],
                store=store,
                model_name=model_name,
                label=label,
            ).set_display_name("Deploy model")
            # The store is outside of KFP's sight: whether the version is still there is checked every time.
            deployed.set_caching_options(False)

        tasks = (
            checked,
            data,
            extracted,
            features,
            head,
            tuned,
            exported,
            evaluated,
            attacked,
            seen,
            reported,
            deployed,
        )
        for task in tasks:
            place(task, settings)

    return transfer_learning
