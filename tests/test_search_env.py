"""Search-v0: questions, searching and judging."""

import json
import os
from pathlib import Path

import gymnasium as gym
import pytest

from turnwise.envs.search.retrieval import Passage
from turnwise.envs.search.search_env import SearchEnv

DATA = Path(os.environ.get("TURNWISE_DATA", Path(__file__).parents[2] / "shared" / "data"))
HOTPOT, WIKI = DATA / "hotpotqa_distractor_70.jsonl", DATA / "2wiki_corpus.json"
needs_data = pytest.mark.skipif(
    not (HOTPOT.exists() and WIKI.exists()), reason=f"no question files in {DATA}"
)
QUESTION = {
    "_id": "q1",
    "question": "Where was the author of Iron Well born?",
    "answer": "Greyport",
    "supporting_facts": [["Iron Well", 0], ["Ada Rowe", 0]],
    "context": [
        ["Iron Well", ["Iron Well is the work of Ada Rowe.", " It is long."]],
        ["Ada Rowe", ["Ada Rowe comes from Greyport."]],
        ["Greyport", ["Greyport is a city of Albaria."]],
    ],
}


@pytest.fixture
def question_file(tmp_path: Path) -> Path:
    path = tmp_path / "questions.jsonl"
    path.write_text(json.dumps(QUESTION) + "\n")
    return path


def search(env: SearchEnv, query: str) -> str:
    return env.step(f"<search> {query} </search>")[0]


def test_an_episode_by_hand(question_file: Path) -> None:
    env = SearchEnv(dataset=question_file, split="all", top_k=1)
    observation, info = env.reset(seed=0)
    assert observation.endswith("Question: Where was the author of Iron Well born?")
    assert [t["function"]["name"] for t in info["tools"]] == ["search", "answer"]
    found = search(env, "Iron Well")
    text = "Iron Well is the work of Ada Rowe. It is long."
    assert found == f"<information>\n(1) Iron Well: {text}\n</information>"
    observation, reward, terminated, truncated, info = env.step("<answer> the Greyport. </answer>")
    assert (observation, reward, terminated, truncated) == ("", 1.0, True, False)
    assert info["verdict"] == {"score": 1.0, "status": "correct", "detail": {"em": 1.0, "f1": 1.0}}
    assert info["success"] is True
    assert [m["role"] for m in info["messages"]] == [
        "user",
        "assistant",
        "user",
        "assistant",
        "user",
    ]


def test_a_wrong_answer_is_paid_by_the_metric(question_file: Path) -> None:
    for metric, paid in (("em", 0.0), ("f1", 2 / 3)):
        env = SearchEnv(dataset=question_file, split="all", metric=metric)  # type: ignore[arg-type]
        env.reset(seed=0)
        _, reward, terminated, _, info = env.step("<answer> Greyport harbour </answer>")
        assert terminated
        assert reward == pytest.approx(paid)
        assert info["verdict"]["status"] == "wrong"


def test_titles_length_and_number_of_results(question_file: Path) -> None:
    env = SearchEnv(dataset=question_file, split="all", titles=False, max_result_chars=9, top_k=2)
    env.reset(seed=0)
    assert (
        search(env, "Greyport Ada") == "<information>\n(1) Ada Rowe \n(2) Greyport \n</information>"
    )
    assert "Nothing found" in search(env, "zzz qqq")


def test_a_corpus_replaces_the_questions_own_passages(question_file: Path) -> None:
    corpus = [Passage("Moon", "The moon is far."), Passage("Sun", "The sun is hot.")]
    env = SearchEnv(dataset=question_file, split="all", corpus=corpus)
    env.reset(seed=0)
    assert "The sun is hot." in search(env, "sun")
    assert "Nothing found" in search(env, "Iron Well")


def test_running_out_of_turns_is_no_answer(question_file: Path) -> None:
    env = SearchEnv(dataset=question_file, split="all", max_turns=2)
    env.reset(seed=0)
    search(env, "Iron")
    _, reward, terminated, truncated, info = env.step("<search> Ada </search>")
    assert (reward, terminated, truncated) == (0.0, False, True)
    assert info["verdict"]["status"] == "unparsable"
    assert info["success"] is False


def test_the_probe_states_the_reference(question_file: Path) -> None:
    env = SearchEnv(dataset=question_file, split="all")
    env.reset(seed=0)
    probe = env.probe()
    assert (probe.before, probe.answer) == ("<answer>", " Greyport")
    assert env.step("".join(probe) + " </answer>")[1] == 1.0


def test_a_fork_in_mid_episode_sees_the_same_future() -> None:
    env = SearchEnv()
    env.reset(seed=5, options={"task": 3})
    actions = list(env.oracle())
    env.step(actions[0])
    twin = env.fork()
    ends = [[e.step(a) for a in actions[1:]][-1] for e in (env, twin)]
    assert ends[0] == ends[1]
    assert ends[0][1] == 1.0
    twin.reset(seed=1)
    assert env._turn == len(actions), "a fork's reset reached the original"


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({"split": "tset"}, "split must be"),
        ({"hops": (7,)}, "from 1 to 4"),
        ({"top_k": 0}, "top_k"),
        ({"metric": "bleu"}, "metric"),
        ({"max_turns": 0}, "max_turns"),
        ({"max_result_chars": 0}, "max_result_chars"),
        ({"retriever": "bm52"}, "bm25"),
        ({"render_mode": "rgb_array"}, "render_mode"),
        ({"dataset": "no/such/file.jsonl"}, "no/such/file.jsonl"),
    ],
)
def test_bad_arguments_say_what_is_wrong(kwargs: dict[str, object], said: str) -> None:
    with pytest.raises((ValueError, OSError), match=said):
        gym.make("turnwise/Search-v0", **kwargs)  # type: ignore[arg-type]


@needs_data
def test_hotpotqa_with_its_own_passages_and_with_a_corpus() -> None:
    env = SearchEnv(dataset=HOTPOT, split="all")
    assert env.num_tasks == 70
    sizes = [SearchEnv(dataset=HOTPOT, split=s).num_tasks for s in ("train", "heldout")]
    assert sum(filter(None, sizes)) == 70
    assert all(sizes)
    solved = 0
    for index in range(70):
        env.reset(options={"task": index})
        solved += [env.step(a) for a in env.oracle()][-1][1] == 1.0
    assert solved == 70
    wiki = SearchEnv(dataset=HOTPOT, split="all", corpus=WIKI, top_k=2)
    wiki.reset(seed=0)
    assert "Teutberga" in search(wiki, "queen of Lotharingia by marriage to Lothair II")


@needs_data
def test_cheats_earn_nothing_on_real_questions() -> None:
    env = SearchEnv(dataset=HOTPOT, split="all")
    for index in range(0, 70, 7):
        env.reset(options={"task": index})
        for name in env.cheats():
            env.reset(options={"task": index})
            paid = 0.0
            for action in env.cheats()[name]:
                _, reward, terminated, truncated, _ = env.step(action)
                paid += reward
                if terminated or truncated:
                    break
            assert paid == 0.0, name
