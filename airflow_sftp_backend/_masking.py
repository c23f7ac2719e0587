"""Mask secrets in the logs of this process and of its supervisor.

A log may show a secret in several spellings, and each has a mask. Airflow joins all masks into one pattern, in the
order of a set. If two masks match at one position, either may win, so nothing here depends on the order. A private key
is masked in consecutive blocks without overlap. For any other secret that begins another secret, the remainder of the
longer secret is masked too.
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
from .backend._pem import key_bodies, remove_keys
from .version_compat import conf, mask_secret, pattern_masker

_MASKS_PER_CALL: Final = 32
"""Masks in one call of Airflow. Airflow compiles the pattern anew for each mask, and a kill waits for the whole call.
"""
_TRACEBACK_CHARS: Final = 80
"""Characters of a text in a traceback with locals (rich, structlog)."""
_LONG_TEXT_CHARS: Final = 256
"""Length from which a text is masked in fewer spellings, because no password is as long."""

_known_masks: Final[dict[str, None]] = {}
"""All masks of this process except the blocks of keys, because one secret may begin another."""


def mask_secrets(secrets: Iterable[str]) -> None:
    """Mask secrets in the logs of this process and of the task.

    A kill of the task takes effect between two batches of masks.

    :param secrets: passwords, passphrases, private keys and other secret texts; Airflow ignores texts below 5
        characters
    """
    try:
        _mask_all(secrets)
    except BaseException as error:  # noqa: BLE001 - raised again below
        # After a timeout or a kill, the frames of the traceback hold texts without masks.
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
    # Long masks come last, because Airflow compiles all earlier masks again for each mask.
    ordered = sorted(masks, key=lambda mask: (len(mask), mask))
    for start in range(0, len(ordered), _MASKS_PER_CALL):
        with shield_from_kill():
            mask_secret([*ordered[start : start + _MASKS_PER_CALL]])


def _mask_here(masks: set[str]) -> None:
    """Mask texts in this process only, and compile the pattern once.

    `mask_secret` compiles the pattern for each mask.
    """
    masker = pattern_masker()
    if masker is None:
        return  # `mask_secret` masks them in this process too
    new = {re.escape(mask) for mask in masks}
    if new <= masker.patterns:
        return
    while True:
        known = masker.patterns | new
        masker.replacer = re.compile("|".join(known))
        masker.patterns.update(known)
        if masker.patterns == known:  # otherwise another thread has added masks meanwhile
            return


def _min_mask_length() -> int:
    """Return the minimum length of a text that Airflow masks."""
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
    """Return the spellings of a text in logs.

    Logs show a text unchanged, by line, and quoted, up to JSON in JSON in a repr.
    """
    plain = {secret, secret.strip(), secret.strip()[:_TRACEBACK_CHARS]}
    if by_line:  # printed texts are logged line by line
        plain.update(map(str.strip, secret.splitlines()))
    spelled = {text for text in plain if len(text) >= min_length}
    if len(secret) >= _LONG_TEXT_CHARS:
        return spelled | _quoted(spelled, _QUOTERS[:3])
    once = spelled | _quoted(spelled, _QUOTERS)
    twice = once | _quoted(once, _QUOTERS)
    urls = _quoted(once, _URL_QUOTERS)  # a URL holds JSON at most
    return twice | _quoted(twice, _QUOTERS) | urls


def _quoted(texts: set[str], quoters: Sequence[Callable[[str], str]]) -> set[str]:
    """Return each text as quoted by each quoter."""
    return {quoter(text) for text in texts for quoter in quoters}


def _remainders(texts: set[str], min_length: int) -> set[str]:
    """Return the remainders of texts that begin with another text.

    Remainders of remainders are included.
    """
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
"""Maximum of the consecutive base64 characters of a key that a log may show."""
_PEM_WIDTH: Final = 64
"""Line length of PEM (RFC 7468); `repair_pem` rewraps every key to this length."""
_LINE_WIDTHS: Final = (64, 70, 76)
"""Common line lengths of base64: PEM, OpenSSH, MIME (RFC 2045)."""
_SEPARATOR_ENDS: Final = ("\n", " ", "n", '"', "'", "A", "0", "+")
"""Last characters of the separators between two lines, also of ``\\n``, quotes in a list, ``%0A`` and ``%20``."""
_VISIBLE_COST: Final = 0.1
"""Cost of a visible character, in masks: among cuts with equal masks, the cut with fewer visible characters wins."""
_MIN_REPEAT_LENGTH: Final = 3 * (_MAX_VISIBLE + 1)
"""Minimum length of a repeated text whose blocks are cut alike at both positions."""
_MAX_PASSES: Final = 8
"""Maximum number of cuts, if a block matches at the start of another block."""
_AVOID_COST: Final = 10
"""Cost of an avoided block, in masks."""
_SHOWN_BLOCK_COST: Final = 10_000
"""Cost of a block that shows where a line ends, in masks: more than that of all other blocks of a key."""


def _key_blocks(lines: Sequence[str], min_length: int) -> set[str]:
    """Cut the base64 of a key into the fewest masks.

    The blocks are consecutive. At most one character that a URL quotes (``+`` or ``/``) stays visible between two
    blocks, so that most blocks are spelled alike in a URL. A block and the visible characters on either side have at
    most 8 characters. If a text is cut within a block, at most 7 consecutive characters show.

    If a line ends within a block, another mask hides the longer part of the block: the end if the characters before the
    part may stay visible, otherwise the start. The masks cover the lines of the given key, lines of 64 characters, and,
    for a text that occurs twice in the key, the line ends at both positions.

    :param lines: the base64 of the key, in its given lines
    :param min_length: minimum length of a mask in Airflow
    :returns: the masks, also in the spelling of a URL
    """
    # A piece below 15 characters that is cut out of a line at both ends can lie in two blocks without containing a
    # block, and then shows. To hide such a piece, every 8 consecutive characters would have to contain a mask. That
    # takes masks of 5 characters at every 4th position, twice as many masks as here. Airflow compiles these in three
    # times the time, beyond the second that RSA-4096 may take. These masks also overlap: Airflow applies one of them,
    # and 3 of every 8 characters of the whole key show, enough to compute an RSA key.
    wrapped_key = _WrappedKey(lines, min_length)
    lengths, limit = range(min_length, _MAX_VISIBLE + 2), _MAX_VISIBLE + 1
    cuts = _fewest_masks(wrapped_key, lengths, limit)
    if not cuts:  # the body is too short, or Airflow is configured to accept only long masks
        lengths, limit = range(min_length, 2 * max(min_length, _MAX_VISIBLE)), len(wrapped_key.body)
        cuts = _fewest_masks(wrapped_key, lengths, limit)
    for _ in range(_MAX_PASSES):
        if not wrapped_key.learn_from(cuts):
            break
        cuts = _fewest_masks(wrapped_key, lengths, limit)
    return {form for start, end in cuts for form in wrapped_key.masks(start, end)}


class _MaskingCost(NamedTuple):
    """Hold the cost and the visible line ends of a block."""

    masks: float
    first: int = 0
    """Maximum of visible characters at the end of a line, before the part with another mask."""
    last: int = 0
    """Maximum of visible characters at the start of a line, after the part with another mask."""
    shows_whole: bool = False
    """True if a line may end where neither part has a mask, so that the whole block shows."""


class _WrappedKey:
    """Hold the base64 of a key with its line ends.

    The line ends are those of the key or of a log.
    """

    def __init__(self, lines: Sequence[str], min_length: int) -> None:
        self.body = body = "".join(lines)
        self.unpadded_size = len(body.rstrip("="))
        """Characters of the base64 without its padding; only these are secret."""
        self._min_length = min_length
        self._positions_by_prefix = _positions_of(body, min_length)
        self._repeated_positions = repeats = _repeated_positions(body)
        given_ends = {*accumulate(map(len, lines)), *range(_PEM_WIDTH, self.unpadded_size, _PEM_WIDTH)}
        common_ends = {end for width in _LINE_WIDTHS for end in range(width, self.unpadded_size, width)}
        inner_ends = [end for end in given_ends if end < self.unpadded_size]
        # A line end in a text also ends a line in each repeat of the text.
        self._line_ends = sorted(position for end in inner_ends for position in (end, *repeats.get(end, ())))
        common_positions = {position for end in common_ends for position in (end, *repeats.get(end, ()))}
        self._common_line_ends = sorted(common_positions.difference(self._line_ends))
        all_ends = {*self._line_ends, *self._common_line_ends}
        # sums up to each position: the difference of two sums is the number between two positions
        self._all_ends_before = [*accumulate((position in all_ends for position in range(len(body) + 1)), initial=0)]
        line_ends = {*self._line_ends}
        self._line_ends_before = [*accumulate((position in line_ends for position in range(len(body))), initial=0)]
        self._quoted_before = [*accumulate((not char.isalnum() for char in body), initial=0)]
        self._repeatable_blocks: dict[str, int] = {}
        """Start of each block of the last cut, by text, if the text occurs there first."""
        self._avoidance_costs: dict[tuple[int, int], int] = {}
        """Costs of avoided blocks by start and end, in masks."""

    def learn_from(self, cuts: Sequence[tuple[int, int]]) -> bool:
        """Learn from an earlier cut which blocks to repeat or avoid.

        :returns: whether another cut may be better
        """
        # An OpenSSH key holds its public key twice: the second time, the blocks of the first cost nothing. A block that
        # matches at the start of another block is avoided.
        is_first_cut = not self._repeatable_blocks
        self._repeatable_blocks = {
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
                self._avoidance_costs[block] = self._avoidance_costs.get(block, 0) + _AVOID_COST
        return bool(conflicts)

    def _blocks_starting_with(self, mask: str, cuts: dict[int, int]) -> Iterator[tuple[int, int]]:
        """Yield the blocks that start with a mask."""
        for position in self._positions_by_prefix.get(mask[: self._min_length], ()):
            if position in cuts and self.body.startswith(mask, position):
                yield position, cuts[position]

    def _occurrences(self, start: int, end: int) -> list[int]:
        """Return the positions of a block's text."""
        block = self.body[start:end]
        return [
            position
            for position in self._positions_by_prefix.get(block[: self._min_length], ())
            if self.body.startswith(block, position)
        ]

    def is_quoted(self, position: int) -> bool:
        """Tell whether a URL quotes the character at a position."""
        return position < len(self.body) and not self.body[position].isalnum()

    def is_near_end(self, position: int) -> bool:
        """Tell whether a line ends soon after a position.

        A mask can leave the characters up to that end visible.
        """
        return self._line_ends_before[min(position + _MAX_VISIBLE, len(self.body))] > self._line_ends_before[position]

    def is_short_line(self, position: int) -> bool:
        """Tell whether a position begins a last line without a mask."""
        # Such a line is too short for a mask
        return 0 < self.unpadded_size - position < self._min_length <= position and position in self._line_ends

    def masks(self, start: int, end: int) -> set[str]:
        """Return the masks of a block and of its parts."""
        if end - start < self._min_length - 1:  # the last line: add a mask for the characters before it
            return _url_variants(self.body[start - self._min_length : start])
        if end - start < self._min_length:
            prefixes = (self.body[end - _MAX_VISIBLE - 1 : start], *_SEPARATOR_ENDS)
            return {prefix + line for prefix in prefixes for line in _url_variants(self.body[start:end])}
        parts = ((first, last) for _, first, last in self._masks_at_line_ends(start, end) if first < last)
        return {form for first, last in ((start, end), *parts) for form in _url_variants(self.body[first:last])}

    def _masks_at_line_ends(self, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Yield each line end in a block with its masked text.

        The text is given by its start and end.

        Start and end are equal if neither part of the block is long enough for a mask.
        """
        for position in self._line_ends[bisect_right(self._line_ends, start) : bisect_left(self._line_ends, end)]:
            if end - position >= self._min_length:
                yield position, position, end
            else:
                yield position, start, position if position - start >= self._min_length else start
        size = max(_MAX_VISIBLE + 1, self._min_length)
        if end - start >= size - 1:  # with a visible character before it, a shorter block shows at most 7
            for position in self._common_line_ends[
                bisect_right(self._common_line_ends, start) : bisect_left(self._common_line_ends, end)
            ]:
                if position + size <= self.unpadded_size:
                    yield position, position, position + size

    def masking_cost(self, start: int, end: int) -> _MaskingCost:
        """Return the cost of hiding a block of the body."""
        is_unique = len(self._positions_by_prefix[self.body[start : start + self._min_length]]) == 1
        is_avoided = (start, end) in self._avoidance_costs
        has_quoted_characters = self._quoted_before[end] != self._quoted_before[start]
        end_count = self._all_ends_before[end] - self._all_ends_before[start + 1]
        if is_unique and not is_avoided and not has_quoted_characters and not end_count:
            return _MaskingCost(1)
        parts = [*self._masks_at_line_ends(start, end)]
        broken = [position for position, first, last in parts if first == last]
        return _MaskingCost(
            self._cost(start, end) + _SHOWN_BLOCK_COST * len(broken),
            max((position - start for position, _, last in parts if last == end), default=0),
            max((end - position for position, first, last in parts if first < last < end), default=0),
            bool(broken) or len(parts) < end_count,
        )

    def _cost(self, start: int, end: int) -> float:
        """Compute the cost of a block.

        The cost is the number of masks, higher if the block can match elsewhere.
        """
        positions = self._occurrences(start, end)
        avoided = self._avoidance_costs.get((start, end), 0)
        if len(positions) == 1:
            return len(self.masks(start, end)) + avoided
        first = self._repeatable_blocks.get(self.body[start:end])
        if first not in {None, start}:
            return avoided
        repeats = self._repeated_positions.get(start + 1, ())
        cost = len(self.masks(start, end))
        if first is None and (
            self._repeatable_blocks or any(position != start and position + 1 not in repeats for position in positions)
        ):
            return cost + _AVOID_COST + avoided
        return cost - _VISIBLE_COST * bool(self._repeatable_blocks) + avoided


def _url_variants(block: str) -> set[str]:
    return {block, quote(block, safe=""), quote(block)}


def _positions_of(body: str, size: int) -> dict[str, list[int]]:
    """Return the positions of each text of a size in a body."""
    positions: dict[str, list[int]] = {}
    for position in range(len(body) - size + 1):
        positions.setdefault(body[position : position + size], []).append(position)
    return positions


def _repeated_positions(body: str) -> dict[int, set[int]]:
    """Map positions in a repeated text to corresponding positions.

    Runs of repeats are left out.
    """
    repeats: dict[int, set[int]] = {}
    for positions in _positions_of(body, _MIN_REPEAT_LENGTH).values():
        if len(positions) > 1 and all(
            following - previous > _MIN_REPEAT_LENGTH for previous, following in pairwise(positions)
        ):
            for first, second in permutations(positions, 2):
                for offset in range(1, _MIN_REPEAT_LENGTH):
                    repeats.setdefault(first + offset, set()).add(second + offset)
    return repeats


class _CutState(NamedTuple):
    """Hold the start of the next block and its limits.

    The limits are those of length and visible characters.
    """

    position: int
    max_length: int
    """Maximum length of the next block."""
    max_tail: int
    """Maximum of the next block's characters that may show after the last block."""


class _CandidateBlock(NamedTuple):
    """Describe a candidate block."""

    end: int
    masking_cost: _MaskingCost
    is_before_quoted: bool

    @classmethod
    def of(cls, wrapped_key: _WrappedKey, start: int, end: int) -> _CandidateBlock:
        """Evaluate a part of the body as a block."""
        return cls(end, wrapped_key.masking_cost(start, end), wrapped_key.is_quoted(end))


def _fewest_masks(wrapped_key: _WrappedKey, lengths: range, limit: int) -> list[tuple[int, int]]:
    """Find the blocks that take the fewest masks, by dynamic programming.

    :param lengths: permitted lengths of a block
    :param limit: maximum characters of a block and the visible ones on either side; one less if the whole block can
        show
    :returns: start and end of each block; no blocks if they cannot cover the body
    """
    best: list[dict[_CutState, tuple[float, _CutState | None, int]]] = [{} for _ in range(len(wrapped_key.body) + 1)]
    best[0][_CutState(0, limit, limit)] = (0, None, 0)
    if wrapped_key.is_quoted(0):
        best[1][_CutState(1, limit - 1, limit - 1)] = (_VISIBLE_COST, None, 0)
    for position, states in enumerate(best[: wrapped_key.unpadded_size]):
        blocks = [
            _CandidateBlock.of(wrapped_key, position, position + length)
            for length in lengths
            if position + length < len(best)
        ]
        for state, (cost_before, _, _) in states.items():
            for target, cost, end in _next_blocks(wrapped_key, blocks, state, limit):
                routes = best[target.position]
                if target not in routes or cost_before + cost < routes[target][0]:
                    routes[target] = (cost_before + cost, state, end)
    ends = [(routes[0], state) for states in best[wrapped_key.unpadded_size :] for state, routes in states.items()]
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
    wrapped_key: _WrappedKey, blocks: Iterable[_CandidateBlock], state: _CutState, limit: int
) -> Iterator[tuple[_CutState, float, int]]:
    """Yield the state after each possible block, its cost and its end."""
    start, max_length, max_tail = state
    max_size = limit - wrapped_key.is_quoted(start)  # a URL can be cut within a quoted character
    for end, cost, is_before_quoted in blocks:
        if end - start > max_length or cost.first > max_tail:
            continue
        for visible_after in (0, 1) if is_before_quoted else (0,):
            size = end - start + visible_after
            if size <= max_size and not (cost.shows_whole and limit - max_length + size >= limit):
                next_tail = limit - size if wrapped_key.is_near_end(end + visible_after) else 0
                yield (
                    _CutState(end + visible_after, limit - visible_after - cost.last, next_tail),
                    cost.masks + visible_after * _VISIBLE_COST,
                    end,
                )
    if wrapped_key.is_short_line(start):
        yield (
            _CutState(wrapped_key.unpadded_size, limit, 0),
            len(wrapped_key.masks(start, wrapped_key.unpadded_size)),
            wrapped_key.unpadded_size,
        )
