"""Fetch pictures, look at every one of them, and divide them into training, validation and test."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, packages_to_install=[], install_kfp_package=False)
def download_data(
    source: str,
    seed: int,
    validation_fraction: float,
    test_fraction: float,
    dataset: dsl.Output[dsl.Dataset],
    fingerprint: str = "",
    mirrors: str = "",
    cache: str = "",
):
    """Write a data set of labelled pictures: audited, divided by class, as TFRecord files.

    The artifact is a folder: classes.json, dataset.json, audit.json, manifest.csv, left_out.csv, TFRecord
    files of each split, contact_sheet.jpg and, where nearly equal pictures were found,
    near_duplicates.jpg. Its metadata counts what it has, what was left out and what was found.

    Args:
        source: closeups, digits, directory:PATH (one sub-folder a class; train, validation and test
            folders of them, which stay the splits; or a table labels.csv with the columns path, label and,
            if wanted, split and group), archive:PATH-or-URL (zip or tar of such a folder) or tfds:NAME (a
            data set of TensorFlow Datasets).
        seed: fixes which picture is in which split and the order of the records; 0 or more.
        validation_fraction: share of each class for validation, above 0 and below 1.
        test_fraction: share of each class for test; together with validation below 1.
        dataset: the data set.
        fingerprint: any text that changes when the source's contents do, so that KFP's cache
            notices.
        mirrors: addresses that are tried where a source's own does not answer, with commas or blanks between.
        cache: folder that outlives the step, for downloads and for what a killed run has done; empty takes
            the one in the user's home.

    Raises:
        InputError: a setting out of range; a source that is missing, broken or refused; fewer than
            two classes, or a class with fewer than three different pictures that can be decoded.
    """
    from graftflow.datasets import write_dataset
    from graftflow.seals import sealed_work
    from graftflow.sources import check_mirrors

    with sealed_work(dataset.path) as (folder, finished):
        info = write_dataset(
            folder,
            source=source,
            seed=seed,
            validation_fraction=validation_fraction,
            test_fraction=test_fraction,
            cache=cache,
            mirrors=check_mirrors(mirrors),
            finished=finished,
        )
    dataset.metadata.update(
        {
            "source": info.source,
            "classes": list(info.classes),
            "pictures": info.pictures,
            "counts": {split: sum(n.values()) for split, n in info.counts.items()},
            **{
                name: found
                for name, found in info.audit.items()
                if isinstance(found, int) and name != "pictures"
            },
            "digest": info.digest,
            "note": info.note,
        }
    )
    left_out, near = info.audit["left_out"], info.audit["near_duplicates"]
    print(
        f"{info.pictures} pictures in {len(info.classes)} classes, {left_out} left out, {near} nearly equal"
    )
