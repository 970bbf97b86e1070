"""The Transformers engine against the model's own forward and generate."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, LlamaConfig

from turnwise.agents.engines.engine import Completion, Request, Sampling
from turnwise.agents.engines.sampling import uniforms
from turnwise.agents.engines.transformers import TransformersEngine

VOCABULARY, MAX_LENGTH = 61, 96
GREEDY = Sampling(max_new_tokens=12, temperature=0.0)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


def tiny_llama(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=VOCABULARY,
        max_position_embeddings=MAX_LENGTH,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=None,
    )
    return AutoModelForCausalLM.from_config(config).eval()


MODEL = tiny_llama()


def engine(**options: Any) -> TransformersEngine:
    return TransformersEngine(options.pop("model", MODEL), None, **options)


def prompts(count: int, low: int = 1, high: int = 30, seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, VOCABULARY, rng.integers(low, high)).tolist() for _ in range(count)]


@torch.no_grad()
def reference_logits(tokens: list[int], model: Any = MODEL) -> torch.Tensor:
    """[T, V] by a forward pass over the whole sequence, no cache."""
    return model(torch.tensor([tokens])).logits[0].float()


def reference_logprobs(
    context: list[int], tokens: list[int], temperature: float = 1.0, model: Any = MODEL
) -> np.ndarray:
    """Teacher-forced log-probabilities of `tokens` after `context`."""
    logits = reference_logits(context + tokens, model)[len(context) - 1 : -1]
    table = torch.log_softmax(logits / temperature, -1)
    return table.gather(1, torch.tensor(tokens)[:, None])[:, 0].numpy()


def reference_completion(request: Request, model: Any = MODEL) -> list[int]:
    """What the request must give: one full forward pass per token, inverse CDF by numpy."""
    tokens, out = list(request.tokens), []
    sampling = request.sampling
    budget = min(sampling.max_new_tokens, MAX_LENGTH - len(tokens))
    draws = uniforms(request.seed, max(budget, 0))
    for draw in draws:
        logits = reference_logits(tokens + out, model)[-1]
        if sampling.temperature == 0:
            token = int(logits.argmax())
        else:
            mass = torch.softmax(logits / sampling.temperature, -1).double().cumsum(0).numpy()
            token = int(np.searchsorted(mass, draw * mass[-1], side="right"))
        out.append(token)
        if token in sampling.stop_token_ids:
            break
    return out


def number(completion: Completion) -> int:
    """The id of a completion whose request was numbered."""
    assert isinstance(completion.id, int)
    return completion.id


def run(eng: TransformersEngine, requests: list[Request]) -> dict[Any, Completion]:
    return {c.id: c for c in eng.generate(requests)}


def same(a: Completion, b: Completion) -> None:
    assert a.tokens.tolist() == b.tokens.tolist()
    np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-5)
    np.testing.assert_allclose(a.probe_logprobs, b.probe_logprobs, atol=1e-5)
    assert a.finish == b.finish


@pytest.mark.parametrize("fused", [True, False])
def test_greedy_equals_generate_and_logprobs_are_teacher_forced(fused: bool) -> None:
    contexts = prompts(9)
    done = run(engine(fused=fused), [Request(i, p, GREEDY) for i, p in enumerate(contexts)])
    for i, context in enumerate(contexts):
        ids = torch.tensor([context])
        expected = MODEL.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=12,
            pad_token_id=0,
        )[0, len(context) :].tolist()
        assert done[i].tokens.tolist() == expected
        assert done[i].tokens.dtype == np.int32 and done[i].logprobs.dtype == np.float32
        assert done[i].finish == "length"
        np.testing.assert_allclose(
            done[i].logprobs, reference_logprobs(context, expected), atol=1e-5
        )


@pytest.mark.parametrize("fused", [True, False])
def test_sampled_completions_equal_the_naive_reference(fused: bool) -> None:
    requests = [
        Request(i, p, Sampling(10, temperature=0.7 + 0.1 * i, stop_token_ids=(i, 7)), seed=i)
        for i, p in enumerate(prompts(8, seed=1))
    ]
    done = run(engine(fused=fused), requests)
    for r in requests:
        tokens = reference_completion(r)
        assert done[r.id].tokens.tolist() == tokens
        assert done[r.id].finish == ("stop" if tokens[-1] in (r.id, 7) else "length")
        np.testing.assert_allclose(
            done[r.id].logprobs,
            reference_logprobs(list(r.tokens), tokens, r.sampling.temperature),
            atol=1e-5,
        )


def test_a_completion_depends_on_its_seed_and_context_alone() -> None:
    requests = [
        Request(i, p, Sampling(15, stop_token_ids=(3,)), seed=100 + i)
        for i, p in enumerate(prompts(12, seed=2))
    ]
    together = run(engine(), requests)
    backwards = run(engine(max_batch=5), requests[::-1])
    alone = {r.id: run(engine(), [r])[r.id] for r in requests}
    for r in requests:
        same(together[r.id], alone[r.id])
        same(together[r.id], backwards[r.id])
    other = run(engine(), [Request(0, requests[0].tokens, Sampling(15), seed=7)])[0]
    assert other.tokens.tolist() != together[0].tokens.tolist()


def test_a_mixed_batch_samples_each_row_its_own_way() -> None:
    (context,) = prompts(1, 8, 9)
    kinds = [
        Sampling(6, temperature=0.0),
        Sampling(6, temperature=2.0),
        Sampling(6, top_k=1),
        Sampling(6, top_p=1e-6),
        Sampling(6),
    ]
    requests = [Request(i, context, s, seed=5) for i, s in enumerate(kinds)]
    mixed = run(engine(), requests)
    for r in requests:
        same(mixed[r.id], run(engine(), [r])[r.id])
    # Only the most probable token survives: the same as greedy, log-probabilities too.
    same(mixed[2], mixed[0])
    same(mixed[3], mixed[0])


@pytest.mark.parametrize("fused", [True, False])
def test_frequencies_match_the_distribution(fused: bool) -> None:
    (context,) = prompts(1, 5, 6, seed=3)
    n, temperature = 4000, 1.5
    done = run(
        engine(fused=fused, max_batch=256),
        [Request(i, context, Sampling(1, temperature=temperature), seed=i) for i in range(n)],
    )
    counts = np.bincount([c.tokens[0] for c in done.values()], minlength=VOCABULARY)
    probs = torch.softmax(reference_logits(context)[-1].double() / temperature, -1).numpy()
    common = probs * n >= 5
    expected = np.append(probs[common], probs[~common].sum()) * n
    observed = np.append(counts[common], counts[~common].sum())
    chi2 = ((observed - expected) ** 2 / expected).sum()
    # Mean df, variance 2 df: five standard deviations above is far beyond chance.
    df = len(expected) - 1
    assert chi2 < df + 5 * np.sqrt(2 * df)


@pytest.mark.parametrize("fused", [True, False])
def test_sessions_equal_contexts_from_scratch(fused: bool) -> None:
    rng = np.random.default_rng(4)
    eng = engine(fused=fused)
    contexts = {i: p for i, p in enumerate(prompts(6, 4, 20, seed=4))}
    for turn in range(5):
        requests = [
            Request(i, contexts[i], Sampling(6, stop_token_ids=(1, 2)), 10 * i + turn, i)
            for i in contexts
        ]
        for done in eng.generate(requests):
            i = number(done)
            fresh = Request(0, contexts[i], Sampling(6, stop_token_ids=(1, 2)), 10 * i + turn)
            same(done, run(engine(fused=fused), [fresh])[0])
            contexts[i] = contexts[i] + done.tokens.tolist()
        for i in contexts:
            contexts[i] = contexts[i] + rng.integers(0, VOCABULARY, 1 + i % 4).tolist()
    # Nothing but the new tokens of each turn, and each turn's last sampled token, was read.
    assert eng.statistics.cached_tokens > 0
    assert eng.statistics.prefilled_tokens < sum(len(c) for c in contexts.values())


def test_a_session_may_change_its_mind() -> None:
    """A context that does not extend the cached one is read from where it differs."""
    eng = engine()
    first = [5, 6, 7, 8, 9, 10]
    run(eng, [Request(0, first, GREEDY, session="s")])
    for context in ([5, 6, 7, 1], [5], [9, 9, 9, 9, 9, 9, 9, 9], first):
        done = run(eng, [Request(0, context, GREEDY, session="s")])[0]
        same(done, run(engine(), [Request(0, context, GREEDY)])[0])


def test_equal_contexts_are_read_once() -> None:
    (context,) = prompts(1, 29, 30)
    eng = engine()
    requests = [Request(i, context, Sampling(8), seed=i, probe=(4, 5)) for i in range(8)]
    done = run(eng, requests)
    # 28 tokens and a probe (its last token is never read), then 7 times the last token and probe.
    assert eng.statistics.prefilled_tokens == 29 + 1 + 7 * 2
    assert eng.statistics.cached_tokens == 7 * 28
    for r in requests:
        same(done[r.id], run(engine(), [r])[r.id])


def test_a_shared_beginning_is_read_once() -> None:
    (system,) = prompts(1, 40, 41)
    eng = engine()
    requests = [Request(i, system + p, GREEDY) for i, p in enumerate(prompts(5, 3, 9))]
    done = run(eng, requests)
    assert eng.statistics.cached_tokens >= 4 * 40
    for r in requests:
        same(done[r.id], run(engine(), [r])[r.id])


@pytest.mark.parametrize("fused", [True, False])
def test_probes_equal_scores_and_change_nothing(fused: bool) -> None:
    contexts = prompts(7, seed=5)
    probes = prompts(7, 0, 9, seed=6)
    eng = engine(fused=fused)
    with_probe = run(
        eng,
        [
            Request(i, c, Sampling(9), i, probe=p)
            for i, (c, p) in enumerate(zip(contexts, probes, strict=True))
        ],
    )
    without = run(
        engine(fused=fused), [Request(i, c, Sampling(9), i) for i, c in enumerate(contexts)]
    )
    scores = eng.score(
        [c + p for c, p in zip(contexts, probes, strict=True)],
        [(len(c), len(c) + len(p)) for c, p in zip(contexts, probes, strict=True)],
    )
    for i, (context, probe) in enumerate(zip(contexts, probes, strict=True)):
        assert with_probe[i].tokens.tolist() == without[i].tokens.tolist()
        np.testing.assert_allclose(with_probe[i].logprobs, without[i].logprobs, atol=1e-5)
        assert with_probe[i].probe_logprobs.shape == (len(probe),)
        np.testing.assert_allclose(with_probe[i].probe_logprobs, scores[i], atol=1e-5)
        np.testing.assert_allclose(scores[i], reference_logprobs(context, probe), atol=1e-5)


@pytest.mark.parametrize("fused", [True, False])
def test_scores_of_inner_spans_in_their_order(fused: bool) -> None:
    sequences = prompts(9, 12, 40, seed=7)
    spans = [(1 + i, 3 + i) for i in range(8)] + [(5, 5)]
    eng = engine(fused=fused, prefill_tokens=50)
    scores = eng.score(sequences, spans)
    assert [len(s) for s in scores] == [2] * 8 + [0]
    for ids, (start, end), score in zip(sequences, spans, scores, strict=True):
        np.testing.assert_allclose(
            score, reference_logprobs(ids[:start], ids[start:end]), atol=1e-5
        )
    for bad in ((0, 2), (3, 2), (1, 99)):
        with pytest.raises(ValueError, match="span"):
            eng.score([sequences[0]], [bad])


def test_the_context_limit() -> None:
    eng = engine()
    full, longer = prompts(2, MAX_LENGTH, MAX_LENGTH + 1, seed=8)
    done = run(
        eng,
        [
            Request("room for 2", full[:-2], Sampling(9), seed=1, session=1),
            Request("full", full, Sampling(9), session=2, probe=(1, 2)),
            Request("full, no probe", longer, Sampling(9), session=3),
            Request("too long", [*longer, 1, 2], Sampling(9), session=4, probe=(1,)),
        ],
    )
    assert done["room for 2"].tokens.tolist() == reference_completion(
        Request(0, full[:-2], Sampling(9), seed=1)
    )
    assert len(done["room for 2"].tokens) == 2
    for id in ("full", "full, no probe", "too long"):
        assert len(done[id].tokens) == 0 and done[id].finish == "length"
    probe = done["full"].probe_logprobs
    np.testing.assert_allclose(probe[0], reference_logprobs(full, [1])[0], atol=1e-5)
    assert np.isnan(probe[1]) and np.isnan(done["too long"].probe_logprobs).all()
    # The sessions are not in flight any more.
    again = run(eng, [Request(i, full[:20], GREEDY, session=i) for i in (1, 2, 3, 4)])
    for completion in again.values():
        same(completion, run(engine(), [Request(0, full[:20], GREEDY)])[0])


def test_few_rows_evict_and_nothing_is_lost() -> None:
    eng = engine(max_batch=2, max_sessions=3)
    contexts = {i: p for i, p in enumerate(prompts(7, 5, 12, seed=9))}
    for turn in range(3):
        requests = [Request(i, c, Sampling(5), 7 * turn + i, i) for i, c in contexts.items()]
        for done in eng.generate(requests):
            i = number(done)
            same(done, run(engine(), [Request(0, contexts[i], Sampling(5), 7 * turn + i)])[0])
            contexts[i] = [*contexts[i], *done.tokens.tolist(), turn]
    assert eng.statistics.cached_tokens < eng.statistics.prefilled_tokens


def test_completions_come_as_they_finish_and_requests_in_between() -> None:
    eng = engine(max_batch=3)
    lengths = [40, 2, 9, 4, 1, 30]
    requests = [
        Request(i, p, Sampling(n), i)
        for i, (p, n) in enumerate(zip(prompts(6, 3, 9), lengths, strict=True))
    ]
    eng.submit(requests[:4])
    done: dict[Any, Completion] = {}
    order = []
    for _ in range(500):
        for completion in eng.poll():
            done[completion.id] = completion
            order.append(completion.id)
            if len(order) == 1:
                eng.submit(requests[4:])
    assert order[0] == 1 and order[-1] in (0, 5)
    assert eng.poll() == []
    for r in requests:
        same(done[r.id], run(engine(), [r])[r.id])


def test_bad_requests_say_what_is_wrong_and_queue_nothing() -> None:
    eng = engine()
    good = Request("good", [1, 2], GREEDY, session="s")
    with pytest.raises(ValueError, match="'empty' has an empty context"):
        eng.submit([good, Request("empty", [], GREEDY)])
    with pytest.raises(ValueError, match="in flight"):
        eng.submit([good, Request("twin", [1, 2], GREEDY, session="s")])
    with pytest.raises(ValueError, match="0 to 60"):
        eng.submit([good, Request("alien", [VOCABULARY], GREEDY)])
    with pytest.raises(ValueError, match="0 to 60"):
        eng.submit([good, Request("alien probe", [1], GREEDY, probe=(-1,))])
    assert eng.poll() == []
    eng.submit([good])
    with pytest.raises(ValueError, match="in flight"):
        eng.submit([Request("later twin", [1, 2], GREEDY, session="s")])
    assert [c.id for c in eng.generate([])] == ["good"]


def test_bad_sizes() -> None:
    with pytest.raises(ValueError, match="max_length"):
        engine(max_length=MAX_LENGTH + 1)
    with pytest.raises(ValueError, match="max_sessions"):
        engine(max_batch=4, max_sessions=3)


def test_release_frees_the_row() -> None:
    eng = engine(max_batch=2, max_sessions=2)
    context = prompts(1, 20, 21)[0]
    run(eng, [Request(0, context, GREEDY, session="a")])
    eng.release("a")
    eng.release("never seen")
    run(eng, [Request(0, context, GREEDY, session="a")])
    assert eng.statistics.cached_tokens == 0
    # In flight: released when it finishes.
    eng.submit([Request(1, context, Sampling(40), session="b")])
    eng.poll()
    eng.release("b")
    for _ in range(100):
        eng.poll()
    done = run(eng, [Request(2, context, GREEDY, session="b")])[2]
    same(done, run(engine(), [Request(2, context, GREEDY)])[2])


@pytest.mark.parametrize("fused", [True, False])
def test_new_weights_take_effect_at_once(fused: bool) -> None:
    model, other = copy.deepcopy(MODEL), tiny_llama(seed=1)
    eng = engine(model=model, fused=fused)
    (context,) = prompts(1, 20, 21)
    request = Request(0, context, Sampling(10), session="s")
    before = run(eng, [request])[0]
    assert before.weights_version == 0
    eng.load_weights({k: v.numpy() for k, v in other.state_dict().items()}, 3)
    after = run(eng, [request])[0]
    assert after.weights_version == 3
    assert after.tokens.tolist() == reference_completion(request, other)
    with torch.no_grad():
        for old, new in zip(model.parameters(), MODEL.parameters(), strict=True):
            old.copy_(new)
    eng.load_weights(None, 4)
    again = run(eng, [request])[0]
    assert again.weights_version == 4
    same(again, before)
    np.testing.assert_allclose(
        eng.score([context], [(1, 9)])[0], reference_logprobs(context[:1], context[1:9]), atol=1e-5
    )


def test_completions_in_flight_are_of_one_version() -> None:
    model, other = copy.deepcopy(MODEL), tiny_llama(seed=1)
    eng = engine(model=model)
    requests = [Request(i, p, Sampling(40), i, session=i) for i, p in enumerate(prompts(3, 5, 9))]
    eng.submit(requests)
    eng.poll()
    eng.load_weights(other.state_dict(), 1)
    done = {c.id: c for c in eng.generate([])}
    for r in requests:
        assert done[r.id].weights_version == 1
        assert done[r.id].tokens.tolist() == reference_completion(r, other)


def test_training_is_possible_beside_the_engine() -> None:
    model = copy.deepcopy(MODEL)
    eng = engine(model=model)
    run(eng, [Request(0, [1, 2, 3], GREEDY)])
    model(torch.tensor([[1, 2, 3]])).logits.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(data=st.data())
def test_random_sessions_equal_the_naive_reference(data: st.DataObject) -> None:
    """Any interleaving of submits, polls and releases gives what full forward passes give."""
    eng = engine(
        fused=data.draw(st.booleans()),
        max_batch=data.draw(st.integers(1, 4)),
        max_sessions=data.draw(st.integers(4, 6)),
        prefill_tokens=data.draw(st.sampled_from([8, 64])),
    )
    some_tokens = st.lists(st.integers(0, 3), min_size=1, max_size=24)
    contexts: dict[int, list[int]] = {}
    flying: dict[int, Request] = {}

    def check(completions: list[Completion]) -> None:
        for c in completions:
            r = flying.pop(number(c))
            assert c.tokens.tolist() == reference_completion(r)
            if len(c.tokens):
                expected = reference_logprobs(
                    list(r.tokens), c.tokens.tolist(), r.sampling.temperature or 1.0
                )
                np.testing.assert_allclose(c.logprobs, expected, atol=1e-4)
            fits = [t for j, t in enumerate(r.probe) if len(r.tokens) + j <= MAX_LENGTH]
            if fits and len(r.tokens) + len(fits) <= MAX_LENGTH:
                np.testing.assert_allclose(
                    c.probe_logprobs[: len(fits)],
                    reference_logprobs(list(r.tokens), fits),
                    atol=1e-4,
                )
            contexts[number(c)] = [*r.tokens, *c.tokens.tolist()]

    for _ in range(data.draw(st.integers(3, 12))):
        session = data.draw(st.integers(0, 5))
        action = data.draw(st.sampled_from(["submit", "submit", "poll", "release"]))
        if action == "submit" and session not in flying:
            context = contexts.get(session, []) + data.draw(some_tokens)
            flying[session] = Request(
                session,
                context,
                Sampling(
                    data.draw(st.integers(1, 20)),
                    temperature=data.draw(st.sampled_from([0.0, 1.0, 1.3])),
                    stop_token_ids=data.draw(st.sampled_from([(), (5, 6, 7), (1,)])),
                ),
                seed=data.draw(st.integers(0, 9)),
                session=session,
                probe=data.draw(st.lists(st.integers(0, 9), max_size=4)),
            )
            if len(context) > MAX_LENGTH:
                contexts.pop(session)
            eng.submit([flying[session]])
        elif action == "poll":
            check(eng.poll())
        else:
            eng.release(session)
    check(list(eng.generate([])))
    assert not flying


def test_it_works_under_torchs_ban_on_non_deterministic_kernels() -> None:
    request = Request(0, [5, 6, 7], Sampling(max_new_tokens=4), seed=1)
    (expected,) = engine().generate([request])
    torch.use_deterministic_algorithms(True)
    try:
        (completion,) = engine().generate([request])
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    assert completion.tokens.tolist() == expected.tokens.tolist()
