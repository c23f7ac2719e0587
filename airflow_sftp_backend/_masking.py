"""Hides secrets from the logs of this process and of its supervisor, in every form that a log may show.

Airflow joins all masks into one pattern, in the order of a set: where two masks fit at one place, either may win. So
nothing here depends on that order. A private key is masked in blocks that follow each other without overlap; of any
other secret that begins another one, what the longer one has more is masked too.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate, pairwise, permutations
from typing import Final, NamedTuple
from urllib.parse import quote, quote_plus

from ._cancellation import shield_from_kill
from .backend._ssh.pem import key_bodies, remove_keys
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
        blocks.update(*(_key_blocks(lines, min_length) for lines in bodies))
        if not bodies or remove_keys(secret):
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
_PEM_WIDTH: Final = 64
"""Line length of PEM (RFC 7468), to which `repair_pem` brings every key."""
_LINE_WIDTHS: Final = (64, 70, 76)
"""Line lengths of base64 in use: PEM, OpenSSH, MIME (RFC 2045)."""
_SEPARATOR_ENDS: Final = ("\n", " ", "n", '"', "'", "A", "0", "+")
"""Last characters between two lines: also of ``\\n``, of quotes in a list, and of ``%0A`` and ``%20``."""
_VISIBLE_COST: Final = 0.1
"""Of a visible character, in masks: of two ways with as many masks the one that shows less is taken."""
_MIN_REPEAT_LENGTH: Final = 3 * (_MAX_VISIBLE + 1)
"""Characters of a text that stands twice from which on its blocks are the same at both positions."""
_MAX_PASSES: Final = 8
"""Times that the blocks are chosen anew because one of them matches where another one begins."""
_AVOID_COST: Final = 10
"""Masks that may be spent to avoid a block."""


def _key_blocks(lines: Sequence[str], min_length: int) -> set[str]:
    """Cuts the base64 of a key into the fewest masks that hide it.

    The blocks follow each other; at most one character that a URL quotes (``+`` or ``/``) stays visible between two,
    so that most blocks look the same in a URL. A block and what is visible on either side of it have at most 8
    characters: where a text is cut in a block, at most 7 show in a row.

    Where a line ends in a block, another mask hides the longer part of it: its end if the characters before that may
    stay visible, else its start. This holds for the lines the key was given in and for lines of 64 characters, and
    where text stands twice in the key, for the line ends at both positions.

    A piece below 15 characters that is cut out of a line at both ends can lie in two blocks and hold none: it shows. To
    hide it, every 8 characters in a row would have to hold a mask. Then masks of 5 characters begin every 4, twice as
    many as here: Airflow compiles them in three times the time, beyond the second that RSA-4096 may take. And they
    overlap: Airflow takes one, and 3 of every 8 characters of the whole key show, from which RSA keys can be computed.

    :param lines: The base64 of the key, by line as it was given.
    :param min_length: Length of the shortest mask that Airflow takes.
    :returns: The masks; those that a URL quotes in that form too.
    """
    layout = _Layout(lines, min_length)
    lengths, limit = range(min_length, _MAX_VISIBLE + 2), _MAX_VISIBLE + 1
    cuts = _fewest_masks(layout, lengths, limit)
    if not cuts:  # too short a body, or Airflow is told to take long masks only
        lengths, limit = range(min_length, 2 * max(min_length, _MAX_VISIBLE)), len(layout.body)
        cuts = _fewest_masks(layout, lengths, limit)
    for _ in range(_MAX_PASSES):
        if not layout.learn_from(cuts):
            break
        cuts = _fewest_masks(layout, lengths, limit)
    return {form for start, end in cuts for form in layout.masks(start, end)}


class _MaskingCost(NamedTuple):
    """What a block costs, and what of it shows in lines that end in it."""

    masks: float
    first: int = 0
    """Most characters at the end of a line, before the part that has a mask of its own."""
    last: int = 0
    """Most characters at the start of a line, behind the part that has a mask of its own."""
    shows_whole: bool = False
    """Whether a line may end in it where neither part has one, so that all of it shows."""


class _Layout:
    """The base64 of a key with the positions where its lines end, or may end in a log."""

    def __init__(self, lines: Sequence[str], min_length: int) -> None:
        self.body = body = "".join(lines)
        self.secret = len(body.rstrip("="))
        self._min_length = min_length
        self._starts = _positions_of(body, min_length)
        self._repeats = repeats = _repeats(body)
        given_ends = {*accumulate(map(len, lines)), *range(_PEM_WIDTH, self.secret, _PEM_WIDTH)}
        usual_ends = {end for width in _LINE_WIDTHS for end in range(width, self.secret, width)}
        self._line_ends = sorted(
            position for end in given_ends if end < self.secret for position in (end, *repeats.get(end, ()))
        )
        self._usual_ends = sorted(
            {position for end in usual_ends for position in (end, *repeats.get(end, ()))}.difference(self._line_ends)
        )
        all_ends = {*self._line_ends, *self._usual_ends}
        self._break_counts = [*accumulate((position in all_ends for position in range(len(body) + 1)), initial=0)]
        line_ends = {*self._line_ends}
        self._end_counts = [*accumulate((position in line_ends for position in range(len(body))), initial=0)]
        self._quoted_counts = [*accumulate((not char.isalnum() for char in body), initial=0)]
        self._first_positions: dict[str, int] = {}
        self._avoided: dict[tuple[int, int], int] = {}

    def learn_from(self, cuts: Sequence[tuple[int, int]]) -> bool:
        """Learns from an earlier cut which blocks to take again or avoid.

        An OpenSSH key holds its public key twice: the second time, the blocks of the first cost nothing. A block
        that matches where another one begins is avoided.

        :returns: Whether another cut may be better.
        """
        is_first_cut = not self._first_positions
        self._first_positions = {
            self.body[start:end]: start for start, end in cuts if start in self._occurrences(start, end)[:1]
        }
        masks_by_start = {start: self.masks(start, end) for start, end in cuts}
        conflicts = [
            max((start, end), (position, other_end))
            for start, end in cuts
            for mask in masks_by_start[start]
            for position, other_end in self._blocks_starting_with(mask, dict(cuts))
            if mask not in masks_by_start[position]
        ]
        if not is_first_cut:
            for block in conflicts:
                self._avoided[block] = self._avoided.get(block, 0) + _AVOID_COST
        return bool(conflicts)

    def _blocks_starting_with(self, mask: str, cuts: dict[int, int]) -> Iterator[tuple[int, int]]:
        """Yields the blocks at whose start a mask matches."""
        for position in self._starts.get(mask[: self._min_length], ()):
            if position in cuts and self.body.startswith(mask, position):
                yield position, cuts[position]

    def _occurrences(self, start: int, end: int) -> list[int]:
        """Returns the positions where the text of a block stands."""
        block = self.body[start:end]
        return [
            position
            for position in self._starts.get(block[: self._min_length], ())
            if self.body.startswith(block, position)
        ]

    def is_quoted(self, position: int) -> bool:
        """Whether there is a character at that position, and a URL quotes it."""
        return position < len(self.body) and not self.body[position].isalnum()

    def is_near_end(self, position: int) -> bool:
        """Whether a line ends in the characters from there on that a mask can leave visible."""
        return self._end_counts[min(position + _MAX_VISIBLE, len(self.body))] > self._end_counts[position]

    def is_short_line(self, position: int) -> bool:
        """Whether a last line begins there that is too short for a mask."""
        return 0 < self.secret - position < self._min_length <= position and position in self._line_ends

    def masks(self, start: int, end: int) -> set[str]:
        """Returns the masks of a block and of its parts."""
        if end - start < self._min_length - 1:  # a last line: what is before it has another mask besides
            return _url_variants(self.body[start - self._min_length : start])
        if end - start < self._min_length:
            prefixes = (self.body[end - _MAX_VISIBLE - 1 : start], *_SEPARATOR_ENDS)
            return {prefix + line for prefix in prefixes for line in _url_variants(self.body[start:end])}
        parts = ((first, last) for _, first, last in self._masks_at_line_ends(start, end) if first < last)
        return {form for first, last in ((start, end), *parts) for form in _url_variants(self.body[first:last])}

    def _masks_at_line_ends(self, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Yields each line end in a block, and the text masked for it.

        The text is given by its start and end, which are the same if none is long enough.
        """
        for position in self._line_ends[bisect_right(self._line_ends, start) : bisect_left(self._line_ends, end)]:
            if end - position >= self._min_length:
                yield position, position, end
            else:
                yield position, start, position if position - start >= self._min_length else start
        size = max(_MAX_VISIBLE + 1, self._min_length)
        if end - start >= size:
            for position in self._usual_ends[
                bisect_right(self._usual_ends, start) : bisect_left(self._usual_ends, end)
            ]:
                if position + size <= self.secret:
                    yield position, position, position + size

    def masking_cost(self, start: int, end: int) -> _MaskingCost:
        """Returns what it takes to hide a block of the body."""
        is_unique = (
            len(self._starts[self.body[start : start + self._min_length]]) == 1 and (start, end) not in self._avoided
        )
        if (
            is_unique
            and self._quoted_counts[end] == self._quoted_counts[start]
            and self._break_counts[end] == self._break_counts[start + 1]
        ):
            return _MaskingCost(1)
        parts = [*self._masks_at_line_ends(start, end)]
        broken = [position for position, first, last in parts if first == last]
        return _MaskingCost(
            self._cost(start, end) + _AVOID_COST**2 * len(broken),
            max((position - start for position, _, last in parts if last == end), default=0),
            max((end - position for position, first, last in parts if first < last < end), default=0),
            bool(broken) or len(parts) < self._break_counts[end] - self._break_counts[start + 1],
        )

    def _cost(self, start: int, end: int) -> float:
        """Counts the masks of a block, and more if it can match elsewhere."""
        positions = self._occurrences(start, end)
        avoided = self._avoided.get((start, end), 0)
        if len(positions) == 1:
            return len(self.masks(start, end)) + avoided
        first = self._first_positions.get(self.body[start:end])
        if first not in {None, start}:
            return avoided
        repeats = self._repeats.get(start + 1, ())
        cost = len(self.masks(start, end))
        if first is None and (
            self._first_positions or any(position != start and position + 1 not in repeats for position in positions)
        ):
            return cost + _AVOID_COST + avoided
        return cost - _VISIBLE_COST * bool(self._first_positions) + avoided


def _url_variants(block: str) -> set[str]:
    return {block, quote(block, safe=""), quote(block)}


def _positions_of(body: str, size: int) -> dict[str, list[int]]:
    """Finds where each text of a size stands in a body."""
    positions: dict[str, list[int]] = {}
    for position in range(len(body) - size + 1):
        positions.setdefault(body[position : position + size], []).append(position)
    return positions


def _repeats(body: str) -> dict[int, set[int]]:
    """Maps positions in a repeated text to those elsewhere, except in rows."""
    repeats: dict[int, set[int]] = {}
    for positions in _positions_of(body, _MIN_REPEAT_LENGTH).values():
        if len(positions) > 1 and all(
            following - previous > _MIN_REPEAT_LENGTH for previous, following in pairwise(positions)
        ):
            for first, second in permutations(positions, 2):
                for offset in range(1, _MIN_REPEAT_LENGTH):
                    repeats.setdefault(first + offset, set()).add(second + offset)
    return repeats


class _State(NamedTuple):
    """Where the next block starts, and what may be visible beside it."""

    position: int
    max_length: int
    """Most characters of the next block."""
    max_tail: int
    """Most characters of the next block that may show after the last one."""


class _Block(NamedTuple):
    """A block that may be taken."""

    end: int
    masking_cost: _MaskingCost
    is_before_quoted: bool

    @classmethod
    def of(cls, layout: _Layout, start: int, end: int) -> _Block:
        """Looks at a part of the body."""
        return cls(end, layout.masking_cost(start, end), layout.is_quoted(end))


def _fewest_masks(layout: _Layout, lengths: range, limit: int) -> list[tuple[int, int]]:
    """Finds the blocks of these lengths that take the fewest masks, by dynamic programming.

    :param limit: Characters of a block with what is visible on either side; one less where all of it can show.
    :returns: Start and end of each block; none if there is no way to cover the body.
    """
    best: list[dict[_State, tuple[float, _State | None, int]]] = [{} for _ in range(len(layout.body) + 1)]
    best[0][_State(0, limit, limit)] = (0, None, 0)
    if layout.is_quoted(0):
        best[1][_State(1, limit - 1, limit - 1)] = (_VISIBLE_COST, None, 0)
    for position, states in enumerate(best[: layout.secret]):
        blocks = [_Block.of(layout, position, position + length) for length in lengths if position + length < len(best)]
        for state, (cost_before, _, _) in states.items():
            for target, cost, end in _next_blocks(layout, blocks, state, limit):
                routes = best[target.position]
                if target not in routes or cost_before + cost < routes[target][0]:
                    routes[target] = (cost_before + cost, state, end)
    ends = [(routes[0], state) for states in best[layout.secret :] for state, routes in states.items()]
    if not ends:
        return []
    cuts: list[tuple[int, int]] = []
    state = min(ends)[1]
    while True:
        _, previous, end = best[state.position][state]
        if previous is None:
            return cuts[::-1]
        cuts.append((previous.position, end))
        state = previous


def _next_blocks(
    layout: _Layout, blocks: Iterable[_Block], state: _State, limit: int
) -> Iterator[tuple[_State, float, int]]:
    """Yields the state behind each possible block, its cost and its end."""
    start, max_length, max_tail = state
    max_size = limit - layout.is_quoted(start)  # a URL can be cut in what a character is quoted as
    for end, cost, is_before_quoted in blocks:
        if end - start > max_length or cost.first > max_tail:
            continue
        for visible_after in (0, 1) if is_before_quoted else (0,):
            size = end - start + visible_after
            if size <= max_size and not (cost.shows_whole and limit - max_length + size >= limit):
                next_tail = limit - size if layout.is_near_end(end + visible_after) else 0
                yield (
                    _State(end + visible_after, limit - visible_after - cost.last, next_tail),
                    cost.masks + visible_after * _VISIBLE_COST,
                    end,
                )
    if layout.is_short_line(start):
        yield _State(layout.secret, limit, 0), len(layout.masks(start, layout.secret)), layout.secret
