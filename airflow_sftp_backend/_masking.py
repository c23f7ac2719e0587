"""Hides secrets from the logs of this process and of its supervisor, in every form that a log may show.

Airflow joins all masks into one pattern, in the order of a set: where two masks fit at one place, either may win. So
nothing here depends on that order. A private key is masked in blocks that follow each other without overlap; of any
other secret that begins another one, what the longer one has more is masked too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Final
from urllib.parse import quote, quote_plus

from ._cancellation import shield_from_kill
from .backend._ssh.pem import key_bodies, without_keys
from .version_compat import conf, mask_secret, pattern_masker

_MASKS_PER_CALL: Final = 32
"""Masks that are handed to Airflow at once. It compiles the pattern anew for each, and a kill waits for a batch."""
_TRACEBACK_CHARS: Final = 80
"""Characters of a text that a traceback with locals shows (rich, structlog)."""
_LONG_TEXT_CHARS: Final = 256
"""Characters of a text from which on it is masked in fewer spellings: no password is as long."""

_known_masks: Final[dict[str, None]] = {}
"""Every mask of this process that is no block of a key, as one secret may begin another's."""


def mask_secrets(secrets: Iterable[str]) -> None:
    """Masks secrets in the logs of this process and of the task.

    A kill of the task takes effect between two batches of masks.

    :param secrets: Passwords, passphrases, private keys and other secret texts. Airflow ignores those below 5
        characters.
    """
    try:
        _mask_all(secrets)
    except BaseException as error:  # noqa: BLE001 - it is raised again
        # A timeout or a kill: the frames hold texts that are not masked yet.
        del secrets
        error.__context__ = None
        raise error.with_traceback(None) from None


def _mask_all(secrets: Iterable[str]) -> None:
    min_length = _min_mask_length()
    blocks: set[str] = set()
    texts: set[str] = set()
    for secret in secrets:
        bodies = key_bodies(secret)
        blocks.update(block for lines in bodies for block in _key_blocks(lines, min_length))
        if not bodies or without_keys(secret):
            texts |= _log_variants(secret, min_length, by_line=not bodies)
    _known_masks.update(dict.fromkeys(texts))
    _mask_here(blocks)
    masks = blocks | texts | _remainders(texts, min_length)
    # The longest come last: each mask costs the time to compile all before it.
    ordered = sorted(masks, key=lambda mask: (len(mask), mask))
    for start in range(0, len(ordered), _MASKS_PER_CALL):
        with shield_from_kill():
            mask_secret([*ordered[start : start + _MASKS_PER_CALL]])


def _mask_here(masks: set[str]) -> None:
    """Masks texts in this process alone, and compiles the pattern once. `mask_secret` compiles it for each mask."""
    masker = pattern_masker()
    if masker is None:
        return  # `mask_secret` does it
    new = {re.escape(mask) for mask in masks}
    if new <= masker.patterns:
        return
    while True:
        known = masker.patterns | new
        masker.replacer = re.compile("|".join(known))
        masker.patterns.update(known)
        if masker.patterns == known:  # else another thread has added some meanwhile
            return


def _min_mask_length() -> int:
    """Returns the length from which on Airflow masks a text."""
    return int(conf.getint("logging", "min_length_masked_secret", fallback=5))


# ---- passwords and other short texts -------------------------------------------------------------------------------

_QUOTERS: Final[Sequence[Callable[[str], str]]] = (
    lambda text: json.dumps(text)[1:-1],
    lambda text: json.dumps(text, ensure_ascii=False)[1:-1],
    lambda text: repr(text)[1:-1],
    lambda text: repr('"' + text)[2:-1],  # as part of a text with double quotes, such as JSON
    lambda text: ascii(text)[1:-1],
    lambda text: repr(text.encode("utf-8", "surrogatepass"))[2:-1],
)
_URL_QUOTERS: Final[Sequence[Callable[[str], str]]] = (
    lambda text: quote(text, safe="", errors="surrogatepass"),
    lambda text: quote(text, errors="surrogatepass"),
    lambda text: quote_plus(text, errors="surrogatepass"),
)


def _log_variants(secret: str, min_length: int, *, by_line: bool) -> set[str]:
    """Returns the forms of a text in logs: as it is, by line, and quoted, up to JSON in JSON in a repr."""
    plain = {secret, secret.strip(), secret.strip()[:_TRACEBACK_CHARS]}
    if by_line:  # what is printed goes into a log line by line
        plain.update(map(str.strip, secret.splitlines()))
    spelled = {text for text in plain if len(text) >= min_length}
    if len(secret) >= _LONG_TEXT_CHARS:
        return spelled | {quoter(text) for text in spelled for quoter in _QUOTERS[:3]}
    once = {quoter(text) for text in spelled for quoter in _QUOTERS} | spelled
    twice = {quoter(text) for text in once for quoter in _QUOTERS} | once
    urls = {quoter(text) for text in once for quoter in _URL_QUOTERS}  # a URL holds JSON at most
    return {quoter(text) for text in twice for quoter in _QUOTERS} | twice | urls


def _remainders(texts: set[str], min_length: int) -> set[str]:
    """Returns what texts have more than others that begin them, or others more than they, and that in turn."""
    remainders: set[str] = set()
    new = texts
    while new:
        known = remainders.union(texts, list(_known_masks))
        new = {remainder for remainder in _after_prefixes(sorted(known), new) if len(remainder) >= min_length} - known
        remainders |= new
    return remainders


def _after_prefixes(ordered: Sequence[str], new: set[str]) -> Iterator[str]:
    prefixes: list[str] = []
    for text in ordered:
        while prefixes and not text.startswith(prefixes[-1]):
            prefixes.pop()
        yield from (text[len(prefix) :] for prefix in prefixes if text in new or prefix in new)
        prefixes.append(text)


# ---- private keys --------------------------------------------------------------------------------------------------

_MAX_VISIBLE: Final = 7
"""Characters of a key's base64 in a row that a log may show at most."""
_LINE_WIDTHS: Final = (64, 70, 76)
"""Line lengths of base64 in use: PEM (RFC 7468), OpenSSH, MIME (RFC 2045)."""
_VISIBLE_COST: Final = 0.1
"""Of a visible character, in masks: of two ways with as many masks the one that shows less is taken."""
_AVOID_COST: Final = 10
"""Masks that may be spent to avoid a block."""


def _key_blocks(lines: Sequence[str], min_length: int) -> list[str]:
    """Cuts the base64 of a key into the fewest masks that hide it.

    The blocks follow each other; at most one character that a URL quotes (``+`` or ``/``) stays visible between two,
    so that most blocks look the same in a URL. A block with its visible neighbours has at most 8 characters: where a
    log cuts it, at most 7 show in a row. Where a line may end in it, it has at most 7.

    :param lines: The base64 of the key, by line as it was given.
    :param min_length: Length of the shortest mask that Airflow takes.
    :returns: The blocks in order, those that a URL quotes in that form too.
    """
    body = "".join(lines).rstrip("=")
    layout = _Layout(body, lines)
    lengths, limit = range(min_length, _MAX_VISIBLE + 2), _MAX_VISIBLE + 1
    if not _fewest_masks(layout, lengths, limit):  # too short a body, or Airflow is told to take long masks only
        lengths, limit = range(min_length, 2 * max(min_length, _MAX_VISIBLE)), len(body)
    # An OpenSSH key holds its public key twice: the second time, the blocks of the first are masks already.
    layout.reuse(_fewest_masks(layout, lengths, limit))
    return [mask for start, end in _fewest_masks(layout, lengths, limit) for mask in _url_variants(body[start:end])]


def _url_variants(block: str) -> list[str]:
    return [*dict.fromkeys((block, quote(block, safe=""), quote(block)))]


class _Layout:
    """The base64 of a key with the places where its lines end, or may end in a log."""

    def __init__(self, body: str, lines: Sequence[str]) -> None:
        self.body = body
        positions = range(len(body) + 1)
        given_ends = {*accumulate(map(len, lines))}
        usual_ends = {end for width in _LINE_WIDTHS for end in positions[width::width]}
        self._given_ends = [*accumulate((position in given_ends for position in positions), initial=0)]
        self._line_ends = [*accumulate((position in given_ends | usual_ends for position in positions), initial=0)]
        self._quoted_counts = [*accumulate((not char.isalnum() for char in body), initial=0)]
        self._positions: dict[int, dict[str, list[int]]] = {}
        self._reused: set[str] = set()

    def reuse(self, cuts: Iterable[tuple[int, int]]) -> None:
        """Prefers blocks of an earlier cut where they stand in the body again."""
        blocks = {self.body[start:end]: start for start, end in reversed([*cuts])}
        self._reused = {block for block, start in blocks.items() if self._all_positions(block)[0] == start}

    def _all_positions(self, block: str) -> list[int]:
        """Where a block stands in the body."""
        size = len(block)
        if size not in self._positions:
            positions = self._positions[size] = {}
            for position in range(len(self.body) - size + 1):
                positions.setdefault(self.body[position : position + size], []).append(position)
        return self._positions[size][block]

    def is_quoted(self, position: int) -> bool:
        """Whether there is a character at that place, and a URL quotes it."""
        return position < len(self.body) and not self.body[position].isalnum()

    def may_break(self, start: int, end: int, before: int, after: int) -> bool:
        """Whether a line may end in a block or its visible neighbours, wherever the block stands in the body."""
        positions = self._all_positions(self.body[start:end])
        ends, size, last = self._line_ends, end - start + after, len(self._line_ends) - 1
        return any(ends[min(position + size, last)] > ends[max(position - before, 0) + 1] for position in positions)

    def cost(self, start: int, end: int) -> float:
        """The number of masks that a block needs, and more for a block that is to be avoided.

        A line that ends in a block would show a part of it. A block that stands in the body more than once, as in a
        row of zero bytes, could be masked at another place than its own, and leave a part of the block there.
        """
        block = self.body[start:end]
        if block in self._reused and self._all_positions(block)[0] != start:
            return 0
        quoted = self._quoted_counts[end] > self._quoted_counts[start]
        positions = self._all_positions(block)
        breaks = sum(self._given_ends[position + len(block)] - self._given_ends[position + 1] for position in positions)
        return (len(_url_variants(block)) if quoted else 1) + _AVOID_COST * (breaks + (len(positions) > 1))


def _fewest_masks(layout: _Layout, lengths: range, limit: int) -> list[tuple[int, int]]:
    """Finds the blocks of these lengths that take the fewest masks, by dynamic programming.

    :param limit: Characters of a block with its visible neighbours; one less where a line may end in it.
    :returns: Start and end of each block; none if there is no way to cover the body.
    """
    size = len(layout.body)
    # By the place where the next block starts, and the number of visible characters before it: cost, and how it came.
    best: dict[tuple[int, int], tuple[float, tuple[int, int] | None]] = {(0, 0): (0, None)}
    if layout.is_quoted(0):
        best[1, 1] = (_VISIBLE_COST, None)
    for state in ((position, before) for position in range(size) for before in (0, 1)):
        if state not in best:
            continue
        for target, cost in _next_blocks(layout, state, lengths, limit):
            total = best[state][0] + cost
            if target not in best or total < best[target][0]:
                best[target] = (total, state)
    ends = [state for state in ((size, 0), (size, 1)) if state in best]
    if not ends:
        return []
    cuts = []
    end = min(ends, key=lambda state: best[state][0])
    while (previous := best[end][1]) is not None:
        cuts.append((previous[0], end[0] - end[1]))
        end = previous
    return cuts[::-1]


def _next_blocks(
    layout: _Layout, state: tuple[int, int], lengths: range, limit: int
) -> Iterator[tuple[tuple[int, int], float]]:
    """The blocks that may start at a place, as the state behind each and its cost."""
    start, before = state
    for end in range(start + lengths.start, min(start + lengths.stop, len(layout.body) + 1)):
        for after in (0, 1) if layout.is_quoted(end) else (0,):
            shown = before + end - start + after
            if shown < limit or (shown == limit and not layout.may_break(start, end, before, after)):
                yield (end + after, after), layout.cost(start, end) + after * _VISIBLE_COST
