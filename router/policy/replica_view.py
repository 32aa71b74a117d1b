"""PURE. What a worker believes of one replica: the prompts waiting there, its pace, and what its cache holds.

All of it is learned from what passes through the router: when a request was placed, when its first byte came, when it
ended. An engine's own metrics are not needed; `cached_tokens` in an answer and the length of the engine's own queue are
used where a replica tells them.

The constants below are choices, each for the reason beside it. They were varied on a recorded trace with `bench/replay`, and
checked on made-up ones. Of all that was varied there, only what a cache is believed to hold and how much the backlog counts
made a difference worth naming (docs/routing.md, "What the replay assumes").
"""

from collections import deque
from collections.abc import Callable
from typing import Final

from router.model import Facts
from router.policy.blocks import ENDS, SMALLEST_BYTES, bytes_of
from router.policy.cache_size import Sizes, learned_bytes
from router.policy.elsewhere import Elsewhere
from router.policy.line import PATIENCE, InLine, Line
from router.policy.pace import OWN_FADE, Pace, pooled
from router.policy.placed import PlacedRequest, Placements
from router.policy.prefix_index import PrefixIndex
from router.policy.shared import Shared
from router.policy.wait import Wait

_PACE_HALVES_S: Final = 30.0
"""Without a sample for so long, a replica's own pace counts half as much against the fleet's. A replica that was slow once is
so tried again within a minute or two, and one request in a while is what a wrong guess costs."""
_REPORT_LASTS_S: Final = 15.0
"""Three of a babysitter's heartbeats, like its lease: an older report of a queue says nothing any more."""
_RELEARN_EVERY: Final = 16
"""Samples between two looks for the cache's size. A look walks 104 steps; every sample alone moves the size by little."""
_CLEAR_SHARE: Final = 0.25
"""Of the prompt, that must have been seen before: a cached part smaller than that drowns in the noise of a first token's time."""
_NEGLIGIBLE_SHARE: Final = 0.05
"""Of the prompt: whether so little was cached does not matter to the time."""
_CONFIDENT_SAMPLES: Final = 4.0
"""Samples of the fleet's pace from which on a backlog of nothing is believed; before that only a replica with no request is idle."""
_SETTLED_SAMPLES: Final = 20.0
"""From so many on one more moves the fleet's pace by less than a twentieth, and views may be up to 0.25 s behind it."""
_LEAST_SAMPLE_BYTES: Final = 4096
"""The smallest cache size that `cache_size.py` tells apart."""
_MANY_SAMPLES, _ONE_IN = 400, 4
"""After so many samples of a cache's size, one prompt in so many is enough: older ones fade, a hundred of a step are remembered,
and looking up ages is the dearest part of a placement."""


class ReplicaView(Placements):
    """One replica, as a worker sees it."""

    def __init__(self, shared: Shared, slot: int, tag: int) -> None:
        self._shared = shared
        self._elsewhere = shared.elsewhere
        self._slot = slot
        self._tag = tag
        self.index = PrefixIndex(shared.first_guess_bytes, limit_bytes=shared.first_guess_bytes, limit_blocks=shared.blocks_each)  # fmt: skip
        self.pace = Pace(OWN_FADE)
        self.sizes = Sizes()
        self.s_per_byte = pooled(self.pace, shared.pace)
        self.reading: deque[PlacedRequest] = deque()
        """Sent, and not known to be read yet, in order."""
        self.line = Line()
        self._in_line: dict[InLine, PlacedRequest] = {}
        """Placed, and not sent yet."""
        self.work_bytes = 0
        """Uncached bytes of both."""
        self._outstanding = 0
        """Prompt bytes of both, and of the owed."""
        self._owed: dict[PlacedRequest, None] = {}
        """Answers in one piece that should be read by now, though nothing has been heard of it yet, in order."""
        self._firsts = Wait()
        """For first bytes of streams, beyond what the pace explains."""
        self._answers = Wait()
        """For answers in one piece."""
        self._heard_at = 0.0
        """When bytes of an answer last came."""
        self.requests = 0
        """Of this worker, under way."""
        self.reports = False
        """True once an answer told `cached_tokens`: then times are no longer taken for it."""
        self.paced_at = 0.0
        """When its pace was last learned or let drift."""
        self._previous = 0.0
        """When it finished reading the previous prompt: the next one's service begins then, if it was there."""
        self._samples = 0
        """Of its cache's size."""
        self._repeats = 0
        """Prompts whose beginning had been placed here before."""
        self._foreign_requests = 0
        """Waiting in the engine, and not of this router, by its latest report."""
        self._foreign_at = 0.0
        """When that report came."""

    def repace(self, now: float) -> None:
        """Let the pace drift to the fleet's while nothing is seen: what was slow once is tried again some time."""
        if now - self.paced_at > _PACE_HALVES_S:
            self.paced_at = now
            self.pace.halve()
        self.s_per_byte = pooled(self.pace, self._shared.pace)

    @property
    def in_flight(self) -> int:
        """Requests under way, of all workers."""
        return self.requests if self._elsewhere is None else self.requests + self._elsewhere.requests(self._slot)

    @property
    def outstanding(self) -> int:
        """Prompt bytes that are placed and not read, by all workers."""
        if self._elsewhere is None:
            return self._outstanding
        return self._outstanding + max(0, self._elsewhere.reading_bytes(self._slot))

    def backlog_s(self, now: float) -> float:
        """Seconds of reading before a prompt placed now would have its turn."""
        elsewhere = self._elsewhere
        backlog = self._own_backlog_s(now) if elsewhere is None else self._joint_backlog_s(elsewhere, now)
        if self._owed:
            backlog += self._overdue_s(now)
        if self._foreign_requests:
            backlog += self._foreign_s(now)
        return backlog

    def _joint_backlog_s(self, elsewhere: Elsewhere, now: float) -> float:
        """Of all who place here: the prompt placed first is the one that is being read, whoever placed it."""
        others = max(0, elsewhere.work_bytes(self._slot)) * self.s_per_byte
        if others:
            head_at, head_bytes = elsewhere.head(self._slot)
            if not self.reading or head_at < self.reading[0].at:
                began = max(head_at, self._previous, elsewhere.last_read_s(self._slot))
                progress = min(head_bytes * self.s_per_byte, max(0.0, now - began))
                return max(0.0, self.work_bytes * self.s_per_byte + others - progress)
        return others + self._own_backlog_s(now)

    def note_foreign_load(self, requests: int, now: float) -> None:
        """The engine reports so many waiting requests more than this router has sent: somebody else uses it too."""
        self._foreign_requests = requests
        self._foreign_at = now

    def _foreign_s(self, now: float) -> float:
        """Seconds that the foreign requests will take, if each is like the fleet's mean; a report is good for a while."""
        pace = self._shared.pace
        if now - self._foreign_at > _REPORT_LASTS_S or not pace.count:
            self._foreign_requests = 0
            return 0.0
        return self._foreign_requests * pace.seconds / pace.count

    def _own_backlog_s(self, now: float) -> float:
        while self.reading:
            head = self.reading[0]
            began = self._began(head, now)
            expected = head.work_bytes * self.s_per_byte
            waited = now - began
            if not head.non_streamed or waited < expected:
                backlog = self.work_bytes * self.s_per_byte - min(expected, waited)
                if self._firsts.count:
                    # Nothing is known of a first byte that does not come, but that it may be as late again.
                    backlog += max(0.0, waited - expected - self._firsts.limit_s)
                return backlog
            self._owed[head] = None
            self._leave(head, 0)
            self._previous = began + expected
        return self.line.work_bytes * self.s_per_byte

    def _began(self, head: PlacedRequest, now: float) -> float:
        """When the replica began to read the first prompt that it has of ours."""
        began = max(self._previous, head.at)
        return began if self._elsewhere is None else max(began, min(now, self._elsewhere.last_read_s(self._slot)))

    def _overdue_s(self, now: float) -> float:
        """By how much answers in one piece are later than this replica's own pace explains: as much longer may it take."""
        since = max(self._heard_at, next(iter(self._owed)).at)
        return max(0.0, now - since - self._answers.limit_s) if self._answers.count else 0.0

    def place(self, facts: Facts, now: float) -> PlacedRequest:
        """A request goes to this replica."""
        index, blocks = self.index, facts.blocks
        matched = seen = 0
        ages: tuple[tuple[int, float], ...] = ()
        if blocks:
            matched = bytes_of(index.held(blocks))
            count = index.known(blocks)
            if count:
                seen = ENDS[count - 1]
                self._repeats += 1
                if seen >= _LEAST_SAMPLE_BYTES and (self._samples < _MANY_SAMPLES or not self._repeats % _ONE_IN):
                    positions = sorted({count // 4, count // 2, count * 3 // 4, count - 1})
                    ages = tuple(zip([ENDS[at] for at in positions], index.ages(blocks, positions), strict=True))
            index.use(blocks)
        placement = PlacedRequest(
            self, now, facts.prompt_bytes, facts.prompt_bytes - matched, matched, seen, ages, not facts.stream
        )
        if placement.non_streamed:
            placement.idle = not self.requests or (
                self._shared.pace.count > _CONFIDENT_SAMPLES and not self.backlog_s(now)
            )
        self.reading.append(placement)
        if len(self.reading) == 1:
            self._tell_head()
        self.work_bytes += placement.work_bytes
        self._outstanding += placement.prompt_bytes
        self.requests += 1
        if self._elsewhere is not None:
            self._elsewhere.add(self._slot, placement.work_bytes, placement.prompt_bytes)
            if blocks:
                self._elsewhere.placed(self._tag, blocks)
        return placement

    def must_wait(self, placement: PlacedRequest, now: float) -> bool:
        """See `PlacedRequest`."""
        ahead_s = self._shared.read_ahead_s
        if not ahead_s or self._shared.pace.count <= _CONFIDENT_SAMPLES:
            return False
        return len(self.line) > 0 or self._unread_s(now) - placement.work_bytes * self.s_per_byte > ahead_s

    def _unread_s(self, now: float) -> float:
        """Seconds until the replica has read what it was sent, as its pace explains: a prompt that is late counts for nothing."""
        if not self.reading:
            return 0.0
        head = self.reading[0]
        read_s = min(head.work_bytes * self.s_per_byte, now - self._began(head, now))
        return (self.work_bytes - self.line.work_bytes) * self.s_per_byte - read_s

    def wait(self, placement: PlacedRequest, urgency: int, go: Callable[[], None], now: float) -> None:
        """See `PlacedRequest`."""
        self.reading.pop()
        if not self.reading:
            self._tell_head()
        self.work_bytes -= placement.work_bytes
        ahead_s = self.backlog_s(now)
        self.work_bytes += placement.work_bytes
        one = placement.in_line = InLine(now + PATIENCE * ahead_s, urgency, placement.work_bytes, go)
        self.line.join(one)
        self._in_line[one] = placement

    def let_go(self, now: float) -> None:
        """Send who waits here, while the replica has little to read."""
        while len(self.line):
            unread_s = self._unread_s(now)
            if unread_s > self._shared.read_ahead_s:
                return
            self.send(self._in_line[self.line.next(now + unread_s, self.s_per_byte)], now)

    def empty_line(self, now: float) -> None:
        """Send all who wait here."""
        for placement in list(self._in_line.values()):
            self.send(placement, now)

    def send(self, placement: PlacedRequest, now: float) -> None:
        """See `PlacedRequest`."""
        one = placement.in_line
        if one is None:
            return
        self._leave_line(placement, one)
        placement.at = now
        self.reading.append(placement)
        if len(self.reading) == 1:
            self._tell_head()
        one.go()

    def _leave_line(self, placement: PlacedRequest, one: InLine) -> None:
        self.line.leave(one)
        del self._in_line[one]
        placement.in_line = None

    def first_byte(self, placement: PlacedRequest, now: float) -> None:
        """See `PlacedRequest`."""
        placement.answered = True
        self._heard_at = now
        if placement.non_streamed:
            self._is_read(placement)
            return
        if not placement.reading:
            return
        if self._owed:
            for owed in [one for one in self._owed if one.at <= placement.at]:
                self._is_read(owed)  # first come, first served
        while self.reading[0].non_streamed and self.reading[0] is not placement:
            self._is_read(self.reading[0])
        if self._elsewhere is not None:
            self._previous = max(self._previous, min(now, self._elsewhere.last_read_s(self._slot)))
            self._elsewhere.read_at(self._slot, now)
        placement.service_s = max(0.0, now - max(placement.at, self._previous))
        self._firsts.note(max(0.0, placement.service_s - placement.work_bytes * self.s_per_byte))
        self._is_read(placement)
        self._previous = now
        if not self.reports:
            self._learn_from_time(placement)

    def is_no_prompt(self, placement: PlacedRequest) -> None:
        """See `PlacedRequest`."""
        self._is_read(placement)

    def over(self, placement: PlacedRequest, now: float) -> None:
        """See `PlacedRequest`."""
        self.requests -= 1
        if placement.non_streamed and (placement.answered or placement.written_tokens is not None):
            self._heard_at = now
            self._answers.note(now - placement.at)
        if placement.non_streamed and placement.written_tokens is not None:
            self._ended_non_streamed(placement, placement.written_tokens, now)
        self._is_read(placement)
        if placement.cached_share is None:
            return
        self.reports = True
        cached = placement.cached_share * placement.prompt_bytes
        self._learn_size(placement, cached)
        if placement.service_s is not None:
            self._learn_pace(placement.service_s, placement.prompt_bytes - cached, 1.0)

    def _ended_non_streamed(self, placement: PlacedRequest, written_tokens: int, now: float) -> None:
        """The end of an answer in one piece tells when its prompt was read, once the time per token is known."""
        writing, cached_share = self._shared.writing, placement.cached_share
        known_bytes = placement.known_bytes if cached_share is None else 0
        if placement.idle and known_bytes <= _NEGLIGIBLE_SHARE * placement.prompt_bytes:
            cached = placement.matched_bytes if cached_share is None else cached_share * placement.prompt_bytes
            writing.note(now - placement.at, placement.prompt_bytes - cached, written_tokens)
        if writing.s_per_token is None:
            return
        read_at = max(placement.at, now - writing.s_per_token * written_tokens)
        if placement.reading:
            while self.reading[0] is not placement and self.reading[0].non_streamed:
                self._is_read(self.reading[0])
            self._is_read(placement)
            self._previous = max(self._previous, read_at)
        if placement.idle:
            placement.service_s = read_at - placement.at
            if cached_share is None:
                self._learn_from_time(placement)

    def _is_read(self, placement: PlacedRequest) -> None:
        """Its prompt was read, or nobody needs it any more."""
        if placement.reading:
            self._leave(placement, placement.prompt_bytes)
        elif placement in self._owed:
            del self._owed[placement]
            self._outstanding -= placement.prompt_bytes
            if self._elsewhere is not None:
                self._elsewhere.add(self._slot, 0, -placement.prompt_bytes)

    def _leave(self, placement: PlacedRequest, read_bytes: int) -> None:
        """Its prompt is no longer waited for; `read_bytes` of it are known to be read, or are nobody's any more."""
        placement.reading = False
        if placement.in_line is not None:
            self._leave_line(placement, placement.in_line)
        elif self.reading[0] is placement:
            self.reading.popleft()
            self._tell_head()
        else:
            self.reading.remove(placement)
        self.work_bytes -= placement.work_bytes
        self._outstanding -= read_bytes
        if self._elsewhere is not None:
            self._elsewhere.add(self._slot, -placement.work_bytes, -read_bytes)

    def _tell_head(self) -> None:
        if self._elsewhere is not None:
            at, work_bytes = (self.reading[0].at, self.reading[0].work_bytes) if self.reading else (0.0, 0)
            self._elsewhere.head_is(self._slot, at, work_bytes)

    def _learn_from_time(self, placement: PlacedRequest) -> None:
        """How long it took says how much of it was cached, once the pace is known; and the other way round."""
        assert placement.service_s is not None  # noqa: S101 - the caller has just measured it
        seen, prompt = placement.known_bytes, placement.prompt_bytes
        if seen > _CLEAR_SHARE * prompt and self._shared.pace.count > 1.0:
            cached = prompt - placement.service_s / self.s_per_byte
            self._learn_size(placement, cached)
        confidence = 1.0 - seen / prompt if prompt else 0.0
        if prompt and placement.work_bytes:
            self._learn_pace(placement.service_s, placement.work_bytes, confidence * confidence)

    def _learn_pace(self, service_s: float, uncached_bytes: float, weight: float) -> None:
        if uncached_bytes < SMALLEST_BYTES:
            return  # what took the time was not the reading
        self.pace.note(service_s, uncached_bytes, weight)
        self._shared.pace.note(service_s, uncached_bytes, weight)
        self.s_per_byte = pooled(self.pace, self._shared.pace)
        self.paced_at = self._previous
        if self._shared.pace.count < _SETTLED_SAMPLES:
            self._shared.unsettled = True

    def _learn_size(self, placement: PlacedRequest, cached: float) -> None:
        """Each remembered part was there or not; a part begun counts by its share."""
        if not placement.ages:
            return
        before = 0
        for end, age in placement.ages:
            hit = min(max((cached - before) / (end - before), 0.0), 1.0)
            self.sizes.note(age, hit)
            self._shared.sizes.note(age, hit)
            before = end
        self._samples += 1
        if self._samples % _RELEARN_EVERY == 0:
            learned = learned_bytes(self.sizes, self._shared.sizes, self.index.limit_bytes)
            self.index.resize(learned)
