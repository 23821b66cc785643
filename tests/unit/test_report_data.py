"""What the page says of a real data set with everything wrong that the audit knows."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from graftflow.datasets import write_dataset
from graftflow.errors import InputError
from graftflow.report import write_report
from tests.unit.pictures_on_disk import FRACTIONS, encode, make_folder, photo
from tests.unit.report_artifacts import Run
from tests.unit.test_report import Page


def detailed(seed: int) -> Image.Image:
    grain = np.random.default_rng(seed).integers(0, 256, (16, 20, 3), np.uint8)
    return Image.fromarray(grain).resize((200, 160), Image.Resampling.BICUBIC)


def page_of(tmp_path: Path, files: dict[str, bytes]) -> Page:
    """Put a real data set into a hand-written run and read the page as a browser does."""
    run = Run(tmp_path / "run", ["cat", "dog"])
    artifacts = run.write()
    shutil.rmtree(artifacts["dataset"])
    artifacts["dataset"].mkdir()
    source = f"directory:{make_folder(tmp_path / 'pets', files)}"
    write_dataset(artifacts["dataset"], source=source, seed=0, **FRACTIONS)
    write_report(tmp_path / "report.html", artifacts=artifacts, min_accuracy=0.9)
    return Page((tmp_path / "report.html").read_text(encoding="utf-8"))


def many(cats: int = 30, dogs: int = 9) -> dict[str, bytes]:
    files = {f"cat/{i:02d}.jpg": encode(detailed(i), "JPEG") for i in range(cats)}
    return files | {f"dog/{i:02d}.jpg": encode(detailed(900 + i), "JPEG") for i in range(dogs)}


def test_all_that_the_audit_found_is_on_the_page(tmp_path: Path) -> None:
    files = many()
    files |= {
        "cat/copy.jpg": encode(detailed(3).resize((120, 96)), "JPEG", quality=60),
        "cat/same.jpg": files["cat/04.jpg"],
        "dog/<b>wrong</b>.png": encode(ImageOps.mirror(detailed(5)), "PNG"),
        "cat/png.jpg": encode(detailed(31), "PNG"),
        "cat/old.jpg": encode(detailed(32).convert("L"), "JPEG"),
        "cat/wide.jpg": encode(detailed(33).resize((700, 160)), "JPEG"),
        "cat/tiny.jpg": encode(photo(34, (40, 40)), "JPEG"),
        "cat/night.jpg": encode(Image.new("RGB", (200, 160)), "JPEG"),
        "cat/empty.jpg": b"",
    }
    page = page_of(tmp_path, files)
    for text in (
        "Unbalanced classes. cat (37) has 3.7 times the pictures of dog (10)",
        "Files left out 1 (empty: 1)",
        "Nearly equal, of two classes 2 Kept, all in one split.",
        "cat/05.jpg | dog/<b>wrong</b>.png cat | dog",
        "Nearly equal to another one 4 Kept",
        "cat/03.jpg | cat/copy.jpg cat",
        "Equal files, beyond the first 1",
        "cat/04.jpg | cat/same.jpg 2 files",
        "Another format than the name says 1 Kept: read by its bytes",
        "cat/png.jpg PNG inside .jpg",
        "Without colours 2",
        "Nearly of one shade 1",
        "Small 1 Kept. Shorter side below 64 px or 25 % of the median",
        "cat/tiny.jpg 40 × 40 px",
        "Longer than 3 : 1 1",
        "2 pairs in 2 groups, 1 of them mirrored",
    ):
        assert text in page.sections["data"], text
    sheets = [a["alt"] or "" for tag, a in page.tags if tag == "img" and "early equal" in (a["alt"] or "")]
    assert len(sheets) == 1
    assert "<b>" not in page.html


def test_a_clean_data_set_is_said_to_be_clean(tmp_path: Path) -> None:
    text = page_of(tmp_path, many(12, 12)).sections["data"]
    assert "No copies, wrong suffixes, small, elongated or colourless pictures were found." in text
    assert "No file was left out." in text
    assert "Nearly equal" not in text
    assert "Unbalanced" not in text


def test_copies_across_the_splits_of_a_source_are_a_caveat(tmp_path: Path) -> None:
    files = {
        f"{split}/{path}": data
        for path, data in many(12, 12).items()
        for split in [("train", "val", "test")[int(path[4:6]) % 3]]
    }
    files["test/cat/again.jpg"] = encode(detailed(0), "JPEG", quality=60)
    text = page_of(tmp_path, files).sections["data"]
    assert "Caveat. The source's own splits are kept: train, validation, test." in text
    assert "1 picture has an equal or nearly equal copy across the source's splits: in test" in text
    assert "Copy in train, in test 1 Kept, as the source divides them" in text
    assert "cat/test/again.jpg" in text


@pytest.mark.parametrize(("file", "content"), [("audit.json", b"[]"), ("near_duplicates.jpg", None)])
def test_a_broken_audit_names_its_artifact(tmp_path: Path, file: str, content: bytes | None) -> None:
    run = Run(tmp_path / "run", ["cat", "dog"])
    artifacts = run.write()
    shutil.rmtree(artifacts["dataset"])
    artifacts["dataset"].mkdir()
    root = make_folder(tmp_path / "pets", many(9, 9) | {"cat/copy.png": encode(detailed(3), "PNG")})
    write_dataset(artifacts["dataset"], source=f"directory:{root}", seed=0, **FRACTIONS)
    if content is None:
        (artifacts["dataset"] / file).unlink()
    else:
        (artifacts["dataset"] / file).write_bytes(content)
    with pytest.raises(InputError, match="The 'dataset' artifact must"):
        write_report(tmp_path / "report.html", artifacts=artifacts, min_accuracy=0.9)
