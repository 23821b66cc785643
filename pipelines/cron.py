"""Schedules as Kubeflow Pipelines takes them: cron in six fields, seconds first."""

import argparse
import re

# Lowest and highest value of second, minute, hour, day, month and weekday.
_RANGES = ((0, 59), (0, 59), (0, 23), (1, 31), (1, 12), (0, 6))
_NAMES = {
    4: ["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"],
    5: ["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"],
}


def parse_cron(text: str) -> str:
    """Return a schedule in KFP's six fields (seconds first).

    Args:
        text: five fields, as crontab has them, e.g. ``0 3 * * *`` (KFP itself would read these five as "at minute 3
            of every hour"), or KFP's six, or ``@daily`` and the like. Times are those of the server, mostly UTC.

    Raises:
        argparse.ArgumentTypeError: for anything else.
    """
    text = text.strip()
    if text in ("@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly"):
        return text
    fields = text.split()
    fields = ["0", *fields] if len(fields) == 5 else fields
    if (
        not text.isascii()
        or len(fields) != 6
        or not all(_is_field(i, field) for i, field in enumerate(fields))
    ):
        raise argparse.ArgumentTypeError(
            "a schedule must be cron: minute hour day month weekday, e.g. '0 3 * * *' for 3:00 every day. "
            f"Received: {text!r}"
        )
    return " ".join(fields)


def _is_field(index: int, field: str) -> bool:
    low, high = _RANGES[index]
    names = _NAMES.get(index, [])
    if field == "?":
        return index in (3, 5)
    for part in field.upper().split(","):
        match = re.fullmatch(r"(\*|[0-9A-Z]+)(?:-([0-9A-Z]+))?(?:/([0-9]{1,4}))?", part)
        if not match or (match[1] == "*" and match[2]) or (match[3] and int(match[3]) == 0):
            return False
        ends = [
            names.index(end) + low if end in names else int(end) if end.isdigit() else -1
            for end in match.groups()[:2]
            if end and end != "*"
        ]
        if any(not low <= end <= high for end in ends) or ends != sorted(ends):
            return False
    return True
