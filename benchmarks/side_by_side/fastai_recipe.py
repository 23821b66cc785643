"""fastai's recipe for a few hundred pictures (Howard and Gugger, fastbook, chapter 2), on timm's EfficientNet-Lite0."""

from typing import Any

from benchmarks.side_by_side.stopwatch import Stopwatch, arguments
from benchmarks.side_by_side.timm_weights import ARCHITECTURE, under_timm_names

EPOCHS = 4  # after one with the body frozen


def main() -> None:
    """Run the recipe and write its record."""
    settings = arguments()
    watch = Stopwatch(settings.started)
    import torch
    from fastai.callback.core import Callback
    from fastai.vision.all import (
        ImageDataLoaders,
        RandomResizedCrop,
        accuracy,
        aug_transforms,
        get_image_files,
        set_seed,
        vision_learner,
    )

    set_seed(settings.seed, reproducible=True)
    weights = settings.scratch / "timm.pth"
    with watch.excluded():  # a user's weights come under timm's names
        torch.save(under_timm_names(settings.weights), weights)

    watch.enter("data")
    loaders = ImageDataLoaders.from_folder(
        settings.pictures,
        train="train",
        valid="validation",
        item_tfms=RandomResizedCrop(224, min_scale=0.5),
        batch_tfms=aug_transforms(),
        # fastai's own size; it drops a last batch that is not full, and with it all of a quick run's pictures.
        bs=8 if settings.quick else 64,
        num_workers=2,
    )
    test_files = get_image_files(settings.pictures / "test")

    watch.enter("train")
    learner = vision_learner(
        loaders, ARCHITECTURE, metrics=accuracy, pretrained_cfg_overlay={"file": str(weights)}
    )

    class Note(Callback):  # type: ignore[misc]
        """Adds a point to the curve after every epoch; its order is behind the recorder's."""

        order = 60

        def after_epoch(self) -> None:
            stage = "frozen" if self.learn.opt.frozen_idx else "fine-tuned"
            loss, correct = self.learn.recorder.values[-1][-2:]
            watch.validated(stage, self.learn.epoch + 1, correct, loss)

    note = Note()
    learner.add_cb(note)
    with learner.no_bar(), learner.no_logging():
        learner.fine_tune(1 if settings.quick else EPOCHS)
        result = watch.ready("fastai")

        learner.remove_cb(note)  # predicting ends with after_epoch too

        watch.enter("evaluate")
        probabilities: Any = learner.get_preds(dl=loaders.test_dl(test_files))[0]
    paths = [file.relative_to(settings.pictures / "test").as_posix() for file in test_files]
    watch.predicted(result, paths, probabilities.tolist())
    watch.write(settings.record, distributions=("torch", "timm", "fastai"))


if __name__ == "__main__":
    main()
