"""Fuzz settings files and parsers of settings: ``python tests/stress/fuzz_settings.py -max_total_time=300 CORPUS``."""

import argparse
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["graftflow", "pipelines", "yaml"]):
    from graftflow.epsilons import parse_epsilons
    from graftflow.errors import InputError, one_line
    from graftflow.label_tables import read_table
    from graftflow.sources import check_mirrors, parse_source
    from pipelines import settings
    from pipelines.cron import parse_cron
    from pipelines.setting_rules import SettingsError

FOLDER = Path(tempfile.mkdtemp(prefix="fuzz-settings-", dir="/dev/shm"))


def test_one_input(data: bytes) -> None:
    """Read the bytes as one of the settings; anything but a value or one line of refusal is a finding."""
    kind, rest = data[:1], data[1:]
    text = rest.decode("utf-8", "surrogateescape")
    try:
        match kind:
            case b"e":
                parse_epsilons(text)
            case b"c":
                parse_cron(text)
            case b"s":
                parse_source(text)
            case b"m":
                check_mirrors(text)
            case b"l":
                (FOLDER / "labels.csv").write_bytes(rest)
                read_table(FOLDER / "labels.csv")
            case _:
                (FOLDER / "own.yaml").write_bytes(rest)
                settings.load(FOLDER / "own.yaml")
    except (InputError, SettingsError, argparse.ArgumentTypeError) as error:
        if str(error) != one_line(str(error)):
            raise RuntimeError(f"more than a line: {error!r}") from error


if __name__ == "__main__":
    atheris.Setup(sys.argv, test_one_input)
    atheris.Fuzz()
