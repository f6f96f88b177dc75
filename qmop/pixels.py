"""What a picture's pixels are for everybody who reads one: the trainer, the judge and the service."""

from __future__ import annotations

MAX_ASPECT = 50
"""The longest side over the shortest of a picture that is read.

A sliver one pixel high is small in pixels, but resizing its short side to a tower's input, or making it square, would
blow it up to gigabytes.
"""


def is_sliver(width: int, height: int) -> bool:
    """Whether a picture of so many pixels is narrower than 1 : `MAX_ASPECT`."""
    return max(width, height) > MAX_ASPECT * min(width, height)
