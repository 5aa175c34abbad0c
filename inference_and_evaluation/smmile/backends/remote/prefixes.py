"""The prefixes that requests share, which a service can cache."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Literal

from smmile.backends.interface import Request
from smmile.prompting.conversation import Conversation, Turn

# What to mark: prefixes that requests of the run share, also the end of the examples, or nothing.
CachePrompts = Literal["shared", "examples", "off"]

# A request may have so many marks, and a shorter prefix is not cached, in tokens: by Anthropic for most
# models (others need 2,048 or 4,096) and by OpenAI ("Prompt caching" of both, 2025).
_MOST_MARKS = 4
_LEAST_TOKENS = 1_024


class SharedPrefixes:
    """Which prefixes of `requests` (turns without the query's) others of them share.

    To write a prefix to the cache costs more than to send it, so only those are marked that are read again:
    shared ones, and with `cache` "examples" the whole prefix, for another run with the same examples.
    """

    def __init__(self, requests: Sequence[Request], cache: CachePrompts = "shared") -> None:
        self._requests, self._cache = requests, cache
        ends = (_ends(request.conversation) for request in requests)
        self._users = Counter(chain.from_iterable(found.values() for found in ends))

    def marks(self, conversation: Conversation) -> tuple[int, ...]:
        """The numbers of turns in the prefixes to cache: the longest ones after which requests differ."""
        if self._cache == "off":
            return ()
        ends, found, longer = _ends(conversation), list[int](), 1
        for turns, prefix in reversed(ends.items()):
            if self._users[prefix] > longer or (self._cache == "examples" and not found):
                found.append(turns)
            longer = max(longer, self._users[prefix])
        return tuple(found[:_MOST_MARKS][::-1])

    def spaced(self, distance: int) -> list[Request]:
        """The requests, those that share a prefix at least `distance` places apart as far as possible.

        Without shared prefixes the order remains.
        """
        groups: dict[object, deque[Request]] = {}
        for request in self._requests:
            shared = (one for one in _ends(request.conversation).values() if self._users[one] > 1)
            groups.setdefault(next(shared, request.key), deque()).append(request)
        new = deque(sorted(groups.values(), key=len, reverse=True))
        begun = deque[tuple[int, deque[Request]]]()  # and from which place on they continue
        order: list[Request] = []
        while new or begun:
            if begun and (not new or begun[0][0] <= len(order)):
                group = begun.popleft()[1]
            else:
                group = new.popleft()
            order.append(group.popleft())
            if group:
                begun.append((len(order) - 1 + distance, group))
        return order

    def estimated_tokens(self, tokens: Callable[[Sequence[Turn]], int]) -> tuple[int, int]:
        """The tokens that requests read from the cache and write to it, if nothing there expires."""
        read = written = 0
        known = set[int]()
        for request in self._requests:
            turns, ends = request.conversation.turns, _ends(request.conversation)
            sizes = {ends[mark]: tokens(turns[:mark]) for mark in self.marks(request.conversation)}
            sizes = {prefix: size for prefix, size in sizes.items() if size >= _LEAST_TOKENS}
            hit = max((sizes[prefix] for prefix in known & sizes.keys()), default=0)
            read, written = read + hit, written + max(sizes.values(), default=0) - hit
            known |= sizes.keys()
        return read, written


def _ends(conversation: Conversation) -> dict[int, int]:
    """Each prefix of a conversation: the number of its turns, and its hash in this process."""
    ends: dict[int, int] = {}
    prefix = 0
    for number, turn in enumerate(conversation.turns[:-1], start=1):
        prefix = hash((prefix, turn))
        if number > 1 or turn.role != "system":
            ends[number] = prefix
    return ends
