"""TransformersEngine: continuous batching for a Hugging Face model in this process."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from turnwise.agents.engines.batch import Batch
from turnwise.agents.engines.cache import SlotCache
from turnwise.agents.engines.engine import Completion, Finish, Request
from turnwise.agents.engines.forward import Forward
from turnwise.agents.engines.fused import FusedForward, can_fuse
from turnwise.agents.engines.hf import ModelForward, cache_shape
from turnwise.agents.engines.inference import inference
from turnwise.agents.engines.prefill import Work, accept, read_contexts, score_spans
from turnwise.agents.engines.rows import Rows

_FUSED_LIMIT = 200_000_000
"""Parameters below which a fused copy of the weights is worth its memory."""
_STEPS = 16
"""Decode steps of one poll, at most."""
_PREFIX = 16
"""A prefix shorter than this is computed again rather than copied from another row."""
_WAVES = 3
"""Passes in which one admission may build on prefixes computed in an earlier one."""


@dataclass(slots=True)
class Statistics:
    """What an engine has done so far (`computed_rows`: with those that a step did not need)."""

    generated_tokens: int = 0
    prefilled_tokens: int = 0
    cached_tokens: int = 0
    decode_steps: int = 0
    decoded_rows: int = 0
    computed_rows: int = 0

    @property
    def mean_active_rows(self) -> float:
        """Rows that sampled a token, per decode step."""
        return self.decoded_rows / max(1, self.decode_steps)


class TransformersEngine:
    """Samples from a causal LM with its own decode loop.

    Every sequence has a row of a static key-value cache. The rows that sample are kept at the
    front, so that a step is one batched pass over a slice of the cache; sessions that wait for
    their environment keep their row until another needs it. What is cached decides only how much
    is computed again, never what comes out: a request is matched token by token with its
    session's row, or with any other row that shares its beginning, and the rest is prefilled.

    Probe tokens beyond `max_length` have a log-probability of NaN.

    Attributes:
        model: the model; its parameters are shared, not copied (but see `load_weights`).
        tokenizer: the model's.
        max_length: longest context with its completion.
        weights_version: of the weights now in use.
        statistics: counters.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        max_batch: int = 64,
        max_length: int | None = None,
        max_sessions: int | None = None,
        fused: bool | Literal["auto"] = "auto",
        prefill_tokens: int | None = None,
    ) -> None:
        """Build the engine; the key-value cache grows with use.

        Args:
            model: a Hugging Face causal LM, on the device where it is to run.
            tokenizer: kept for the callers.
            max_batch: sequences that sample at the same time.
            max_length: None: what the model's position embeddings allow.
            max_sessions: sequences that may be resident, waiting ones included; None: twice
                max_batch.
            fused: use the fused forward: "auto" where it is known to be right and the model is
                small.
            prefill_tokens: tokens of one prefill pass; None: 1024 on a CPU, where it should stay
                in the cache, and 8192 elsewhere.

        Raises:
            ValueError: a size that makes no sense, or `fused=True` for an unknown architecture.
        """
        limit = getattr(model.config, "max_position_embeddings", None)
        max_length = max_length or limit
        if max_length is None:
            raise ValueError("The model's config names no maximum length: pass max_length=.")
        if limit is not None and max_length > limit:
            raise ValueError(f"max_length={max_length} exceeds the model's {limit} positions.")
        max_sessions = max_sessions or 2 * max_batch
        if max_batch < 1 or max_sessions < max_batch:
            raise ValueError(
                f"max_batch={max_batch}, max_sessions={max_sessions}: every sequence that samples "
                "is resident, so max_sessions must be at least max_batch, and that at least 1."
            )
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.max_length = int(max_length)
        self.max_batch = max_batch
        self.prefill_tokens = prefill_tokens or (1024 if model.device.type == "cpu" else 8192)
        self.weights_version = 0
        self.statistics = Statistics()
        self.vocabulary = int(model.get_output_embeddings().weight.shape[0])
        self.device: torch.device = model.device
        fuse = self._fuses(fused)
        layers, kv_heads, key_dim, value_dim = cache_shape(model)
        self._cache = SlotCache(
            layers=layers,
            kv_heads=kv_heads,
            key_dim=key_dim,
            value_dim=value_dim,
            max_rows=max_sessions,
            max_length=self.max_length,
            dtype=model.dtype,
            device=self.device,
            turned_keys=fuse,
        )
        self._forward: Forward = (FusedForward if fuse else ModelForward)(model, self._cache)
        self._rows = Rows(max_sessions)
        self._batch = Batch(max_sessions, self.vocabulary, self.device)
        self._queue: deque[Work] = deque()
        self._working: dict[int, Work] = {}
        self._sessions: set[Hashable] = set()
        self._waited = 0

    def _fuses(self, fused: bool | Literal["auto"]) -> bool:
        known = can_fuse(self.model, self.max_length)
        if fused is True and not known:
            raise ValueError(
                f"fused=True, but {type(self.model).__name__} with this config is not one of the "
                "architectures that the fused forward computes: leave fused='auto'."
            )
        small = sum(p.numel() for p in self.model.parameters()) < _FUSED_LIMIT
        return fused is True or (fused == "auto" and known and small)

    def submit(self, requests: Iterable[Request]) -> None:
        """Queue requests; see `Engine.submit`.

        Raises:
            ValueError: an empty context, a token outside the vocabulary, or two requests of one
                session in flight. Nothing is queued then.
        """
        new, sessions = [], set(self._sessions)
        for request in requests:
            new.append(accept(request, vocabulary=self.vocabulary, max_length=self.max_length))
            if request.session is not None:
                if request.session in sessions:
                    raise ValueError(
                        f"Session {request.session!r} has a request in flight (this one is "
                        f"{request.id!r}): submit its next turn after its completion."
                    )
                sessions.add(request.session)
        self._sessions = sessions
        self._queue.extend(new)

    def poll(self) -> list[Completion]:
        """Work a little: admit and prefill, then decode until something finishes."""
        done: list[Completion] = []
        with inference():
            if self._should_admit():
                self._admit(done)
            if self._working and not done:
                self._decode(done)
        return done

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Submit, then yield every completion as it finishes, until nothing is in flight."""
        self.submit(requests)
        while self._queue or self._working:
            yield from self.poll()

    def release(self, session: Hashable) -> None:
        """Forget a session's cache; one with a request in flight loses it at the end of that."""
        row = self._rows.row_of(session)
        if row is None:
            return
        if self._rows.active[row]:
            self._rows.disown(row)
        else:
            self._rows.free(row)

    def _should_admit(self) -> bool:
        """Whether to prefill now: waiting for company makes a pass over few tokens rarer."""
        if not self._queue or len(self._working) >= self.max_batch:
            return False
        self._waited += 1
        room = self.max_batch - len(self._working)
        enough = min(room, len(self._queue)) * 8 >= len(self._working)
        return enough or self._waited > 4

    def _admit(self, done: list[Completion]) -> None:
        self._waited = 0
        room = self.max_batch - len(self._working)
        admitted = [self._queue.popleft() for _ in range(min(room, len(self._queue)))]
        # Sessions whose row is resident first, so that no newcomer evicts them.
        for work in admitted:
            row = self._rows.row_of(work.request.session)
            if row is not None:
                work.row = row
                self._rows.wake(row)
        for wave in range(_WAVES):
            now, later = self._place(admitted, last=wave == _WAVES - 1)
            self._prefill(now, done)
            if not (admitted := later):
                break

    def _place(self, admitted: list[Work], *, last: bool) -> tuple[list[Work], list[Work]]:
        """Give each its row and the longest cached beginning; who had better wait for a peer."""
        now: list[Work] = []
        later: list[Work] = []
        for work in admitted:
            if len(work.tokens) > self.max_length:
                now.append(work)
                continue
            most = len(work.tokens) - 1
            if work.row >= 0:
                work.start = min(self._rows.shared_prefix(work.row, work.tokens), most)
                now.append(work)
                continue
            donor, shared = self._rows.longest_prefix(work.tokens)
            shared = min(shared, most)
            if not last and any(work.gains_from(peer, shared, _PREFIX) for peer in now):
                later.append(work)
                continue
            work.row = self._rows.take(work.request.session)
            if shared >= _PREFIX:
                self._reserve(work.row + 1, len(work.tokens))
                if donor != work.row:
                    self._cache.copy(donor, [work.row], shared)
                work.start = shared
            now.append(work)
        return now, later

    def _reserve(self, rows: int, length: int) -> None:
        self._cache.reserve(max(rows, self._cache.rows), min(length, self.max_length))

    def _prefill(self, works: list[Work], done: list[Completion]) -> None:
        for work in works:
            if not work.budget and not work.probes:
                if work.row >= 0:
                    self._rows.rest(work.row)
                done.append(self._completion(work, np.zeros(0), np.zeros(0), "length"))
        works = [w for w in works if w.budget or w.probes]
        if not works:
            return
        self._reserve(max(w.row for w in works) + 1, max(len(w.tokens) + w.probes for w in works))
        works.sort(key=lambda w: len(w.unread))
        logits = read_contexts(self._forward, works, limit=self.prefill_tokens, device=self.device)
        for work in works:
            self.statistics.prefilled_tokens += len(work.unread)
            self.statistics.cached_tokens += work.start
            self._rows.fill(work.row, work.tokens)
            self._working[work.row] = work
        self._first(works, logits, done)

    def _first(self, works: list[Work], logits: Tensor, done: list[Completion]) -> None:
        """Sample the first token of each, from the logits after its context."""
        keep = [i for i, w in enumerate(works) if w.budget]
        silent = [w.row for w in works if not w.budget]
        if keep:
            chosen = [works[i] for i in keep]
            rows = [w.row for w in chosen]
            self._batch.start(
                rows,
                [w.request.sampling for w in chosen],
                [w.request.seed for w in chosen],
                [w.budget for w in chosen],
                [len(w.tokens) for w in chosen],
            )
            stopped = self._batch.take_first(rows, logits[keep] if silent else logits)
            self._finish(rows, stopped, done)
        for row in silent:
            work = self._working.pop(row)
            self._rows.rest(row)
            self._batch.stop(row, int(self._rows.length[row]))
            done.append(self._completion(work, np.zeros(0), np.zeros(0), "length"))

    def _decode(self, done: list[Completion]) -> None:
        self._compact()
        rows = list(self._working)
        n = max(rows) + 1
        steps = min(_STEPS, int(self._batch.remaining[rows].min()))
        longest = max(len(self._working[r].tokens) + int(self._batch.sampled[r]) for r in rows)
        self._reserve(n, longest + steps)
        knobs, can_stop = self._batch.knobs(None, n)
        stopped: list[int] = []
        taken = 0
        while taken < steps and not stopped:
            logits = self._forward.decode(
                self._batch.tokens[:n], self._batch.positions[:n], longest + taken
            )
            stopped = self._batch.take(n, logits, knobs, can_stop)
            taken += 1
        self._batch.remaining[rows] -= taken
        self._batch.sampled[rows] += taken
        self.statistics.decode_steps += taken
        self.statistics.decoded_rows += taken * len(rows)
        self.statistics.computed_rows += taken * n
        self._finish(rows, stopped, done)

    def _compact(self) -> None:
        """Bring the active rows to the front when too many others lie among them."""
        count = len(self._working)
        if max(self._working) + 1 <= count + count // 4:
            return
        for low, high in self._rows.misplaced():
            length = int(max(self._rows.length[low], self._cached_length(high)))
            self._cache.swap(low, high, length)
            self._rows.swap(low, high)
            self._batch.swap(low, high)
            work = self._working.pop(high)
            work.row = low
            self._working[low] = work

    def _cached_length(self, row: int) -> int:
        work = self._working[row]
        return len(work.tokens) + int(self._batch.sampled[row])

    def _finish(self, rows: list[int], stopped: list[int], done: list[Completion]) -> None:
        """Complete those of `rows` that hit a stop token or have used their budget."""
        ends = [r for r in rows if r in stopped or not self._batch.remaining[r]]
        if not ends:
            return
        tokens, logprobs = self._batch.read(ends)
        for i, row in enumerate(ends):
            work, count = self._working.pop(row), int(self._batch.sampled[row])
            # The last token was sampled but not read: its key and value are not in the row.
            self._rows.fill(row, np.concatenate([work.tokens, tokens[i, : count - 1]]))
            self._rows.rest(row)
            self._batch.stop(row, int(self._rows.length[row]))
            finish: Finish = "stop" if row in stopped else "length"
            self.statistics.generated_tokens += count
            done.append(self._completion(work, tokens[i, :count], logprobs[i, :count], finish))

    def _completion(
        self, work: Work, tokens: NDArray[Any], logprobs: NDArray[Any], finish: Finish
    ) -> Completion:
        self._sessions.discard(work.request.session)
        return Completion(
            id=work.request.id,
            tokens=tokens.astype(np.int32),
            logprobs=logprobs.astype(np.float32),
            finish=finish,
            probe_logprobs=work.probe_logprobs,
            weights_version=self.weights_version,
        )

    def score(
        self, token_ids: Sequence[Sequence[int]], spans: Sequence[tuple[int, int]]
    ) -> list[NDArray[np.float32]]:
        """Teacher-forced log-probabilities of each span; see `Engine.score`.

        Raises:
            ValueError: a span outside its sequence, or one that starts at the first token.
        """
        with inference():
            return score_spans(
                self._forward,
                token_ids,
                spans,
                limit=self.prefill_tokens,
                max_length=self.max_length,
                device=self.device,
            )

    def load_weights(self, state: Mapping[str, Any] | None, version: int) -> None:
        """Take new weights; every cache is forgotten, and completions in flight start afresh.

        Each completion is so sampled by one version of the weights, the one it names.

        Args:
            state: for the model's `load_state_dict`, tensors or arrays; None: the model's own
                parameters changed in place.
            version: what completions will name.
        """
        if state is not None:
            tensors = {k: torch.as_tensor(v) for k, v in state.items()}
            self.model.load_state_dict(tensors)
        self._forward.refresh()
        self.weights_version = version
        self._queue.extendleft(reversed(self._working.values()))
        for row, work in self._working.items():
            self._batch.stop(row, 0)
            work.row, work.start = -1, 0
        self._working.clear()
        self._rows.clear()
