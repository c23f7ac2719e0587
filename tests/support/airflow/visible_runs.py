"""Compute the visible characters of a secret in a masked log.

`longest_run` follows every choice that a pattern of alternatives could make at any place of a text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain

from tests.support.airflow.versions import _secrets_masker


@dataclass
class Shown:
    """Log text; ``secret`` counts the secret's characters per character."""

    text: str
    secret: list[int]

    @classmethod
    def of(cls, *pieces: tuple[str, bool]) -> Shown:
        """Pieces of the secret or around it; without base64 padding."""
        counts = [int(is_secret and char != "=") for text, is_secret in pieces for char in text]
        return cls("".join(text for text, _ in pieces), counts)

    def __getitem__(self, part: slice) -> Shown:
        return Shown(self.text[part], self.secret[part])

    def spelled(self, spell: Callable[[str], str]) -> Shown:
        """With each character as it is spelled elsewhere."""
        spelled = [spell(char) for char in self.text]
        counts = [[0] * (len(many) - 1) + [count] for many, count in zip(spelled, self.secret, strict=True)]
        return Shown("".join(spelled), list(chain(*counts)))


class Masks:
    """Masks by their first characters."""

    def __init__(self, masks: Iterable[str]) -> None:
        self._by_start: dict[str, list[str]] = {}
        for mask in masks:
            self._by_start.setdefault(mask[:5], []).append(mask)

    @classmethod
    def of_airflow(cls, *more: str) -> Masks:
        """Return the masks of this process."""
        masks = [re.sub(r"\\(.)", r"\1", pattern, flags=re.DOTALL) for pattern in _secrets_masker().patterns]
        return cls([*masks, *more])

    def ends(self, text: str, place: int) -> list[int]:
        """Return the end of each mask that matches at a position."""
        fitting = self._by_start.get(text[place : place + 5], ())
        return [place + len(mask) for mask in fitting if text.startswith(mask, place)]


def longest_run(masks: Masks, shown: Shown) -> int:
    """Return the longest visible run of a secret, without line ends."""
    longest = 0
    runs = {0: 0}
    for place in range(len(shown.text)):
        if place not in runs:
            continue
        run = runs.pop(place)
        ends = masks.ends(shown.text, place)
        for end in ends:
            runs.setdefault(end, 0)
        if not ends:
            longest = max(longest, run + shown.secret[place])
            runs[place + 1] = max(runs.get(place + 1, 0), run + shown.secret[place])
    return longest


def longest_run_of_a_cut(masks: Masks, shown: Shown) -> int:
    """Return `longest_run` of the worst cut at any column."""
    ends = [masks.ends(shown.text, place) for place in range(len(shown.text))]
    return max(_longest_behind_a_cut(ends, shown.secret), _longest_before_a_cut(ends, shown.secret))


def _longest_behind_a_cut(ends: list[list[int]], secret: list[int]) -> int:
    first, longest = [0] * (len(secret) + 1), [0] * (len(secret) + 1)
    for place in reversed(range(len(secret))):
        if ends[place]:
            longest[place] = max(longest[end] for end in ends[place])
        else:
            first[place] = first[place + 1] + secret[place]
            longest[place] = max(longest[place + 1], first[place])
    return max(longest)


def _longest_before_a_cut(ends: list[list[int]], secret: list[int]) -> int:
    longest = 0
    runs = {0: 0}
    for place in range(len(secret)):
        if place not in runs:
            continue
        if not ends[place]:
            runs[place + 1] = max(runs.get(place + 1, 0), runs[place] + secret[place])
        for end in ends[place]:
            runs.setdefault(end, 0)
    reach = 1 + max((max(some) - place for place, some in enumerate(ends) if some), default=0)
    for cut in range(1, len(secret) + 1):
        # Masks that end behind the cut do not fit: what is reached before them is as in the whole text.
        near = {place: runs[place] for place in range(max(cut - reach, 0), cut) if place in runs}
        for place in range(max(cut - reach, 0), cut):
            if place in near:
                fitting = [end for end in ends[place] if end <= cut]
                for end in fitting:
                    near.setdefault(end, 0)
                if not fitting:
                    near[place + 1] = max(near.get(place + 1, 0), near[place] + secret[place])
        longest = max([longest, *near.values()])
    return longest
