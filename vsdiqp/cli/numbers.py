"""Numbers on the command line that must not be too small."""

import argparse
from collections.abc import Callable


def from_up(low: int) -> Callable[[str], int]:
    """An argparse ``type``: whole numbers from ``low`` up. Others are refused, saying so."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if value < low:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {low} up")
        return value

    return parse
