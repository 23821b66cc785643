"""The contact sheet: legible whatever the classes are."""

from collections import Counter
from pathlib import Path

from PIL import Image

from graftflow.contact_sheets import draw_contact_sheet, draw_pairs
from tests.unit.pictures_on_disk import bmp, cats_and_dogs, encode, make_folder, write


def test_the_contact_sheet_shows_a_row_a_class(tmp_path: Path) -> None:
    files = cats_and_dogs(3) | {f"Ελληνικά — a rather long name/{i}.bmp": bmp(i) for i in range(3)}
    dataset, _ = write(make_folder(tmp_path / "pets", files))
    with Image.open(dataset / "contact_sheet.jpg") as sheet:
        assert sheet.format == "JPEG"
        assert 1000 <= sheet.width <= 1400
        assert 350 <= sheet.height <= 500


def test_the_contact_sheet_of_many_classes_stays_legible(tmp_path: Path) -> None:
    files = {f"class {k:02d}/{i}.bmp": bmp(k * 10 + i) for k in range(40) for i in range(3)}
    dataset, _ = write(make_folder(tmp_path / "many", files))
    with Image.open(dataset / "contact_sheet.jpg") as sheet:
        assert sheet.width <= 1400
        assert sheet.height <= 3000


def test_a_contact_sheet_draws_the_pictures_it_is_given() -> None:
    red, blue = (encode(Image.new("RGB", (50, 90), c), "PNG") for c in ("red", "blue"))
    sheet = draw_contact_sheet([("a", "2 pictures", [red, blue])], heading="2 pictures")
    colours = Counter(sheet.get_flattened_data())
    assert colours[255, 0, 0] == colours[0, 0, 255] == 108 * 108


def test_a_pair_is_drawn_whole_side_by_side() -> None:
    red, blue = (encode(Image.new("RGB", (50, 100), c), "PNG") for c in ("red", "blue"))
    for count, width in ((1, 640), (5, 1340)):
        sheet = draw_pairs(
            [("mirrored", [("a/1.png", red), ("b — Ελληνικά/2.png", blue)])] * count, heading="x"
        )
        assert width <= sheet.width <= 1400
        colours = Counter(sheet.get_flattened_data())
        assert colours[255, 0, 0] == colours[0, 0, 255] == count * 100 * 200
