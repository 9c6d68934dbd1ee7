"""Whether the hub can be reached: asked once, before its libraries try again and again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["reaches_hub", "without_network"]

REACHED_WITHIN = 5
"""Seconds in which the hub answers, where it is reached at all."""


def reaches_hub() -> bool:
    """Whether anything answers there; where nobody may ask, its libraries say so at once."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return True
    try:
        get_session().head(constants.ENDPOINT, timeout=REACHED_WITHIN)
    except Exception:  # the kind is the HTTP library's, and which that is changes
        return False
    return True


@contextmanager
def without_network() -> Iterator[None]:
    """``datasets`` looks only into its cache meanwhile."""
    from datasets import config

    before, config.HF_HUB_OFFLINE = config.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        config.HF_HUB_OFFLINE = before
