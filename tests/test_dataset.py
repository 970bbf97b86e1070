"""Question and passage files: every format, and every way a file can be broken."""

import json
import os
import pickle
import warnings
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from turnwise.envs.search.dataset import (
    DatasetError,
    Question,
    load_passages,
    load_questions,
)
from turnwise.envs.search.retrieval import Passage

DATA = Path(os.environ.get("TURNWISE_DATA", Path(__file__).parents[2] / "shared" / "data"))

HOTPOT = {
    "_id": "h1",
    "question": "Where was the author of Emma born?",
    "answer": "Steventon",
    "type": "bridge",
    "supporting_facts": [["Emma", 0], ["Jane Austen", 1], ["Emma", 1]],
    "context": [
        ["Emma", ["Emma is a novel.", " It is by Jane Austen."]],
        ["Jane Austen", ["She wrote. ", "", "She was born in Steventon."]],
        ["Bath", []],
    ],
}
HUGGING_FACE = HOTPOT | {
    "id": "f1",
    "supporting_facts": {"title": ["Emma", "Jane Austen"], "sent_id": [0, 1]},
    "context": {
        "title": [title for title, _ in HOTPOT["context"]],
        "sentences": [sentences for _, sentences in HOTPOT["context"]],
    },
}
TWO_WIKI = HOTPOT | {
    "_id": "w1",
    "evidences": [["Emma", "author", "Jane Austen"], ["Jane Austen", "born", "x"], ["x", "y", "z"]],
}
MUSIQUE = {
    "id": "3hop__1_2",
    "question": "Who?",
    "answer": "Ada",
    "answer_aliases": ["Ada L.", "Ada"],
    "answerable": True,
    "paragraphs": [
        {"idx": 0, "title": "Last", "paragraph_text": "l", "is_supporting": True},
        {"idx": 1, "title": "Noise", "paragraph_text": "n", "is_supporting": False},
        {"idx": 2, "title": "First", "paragraph_text": "f", "is_supporting": True},
    ],
    "question_decomposition": [{"paragraph_support_idx": 2}, {"paragraph_support_idx": 0}],
}
PARAGRAPHS = (
    Passage("Emma", "Emma is a novel. It is by Jane Austen."),
    Passage("Jane Austen", "She wrote. She was born in Steventon."),
    Passage("Bath", ""),
)


def write(folder, text, name="file.jsonl"):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def without(row, key):
    return {k: v for k, v in row.items() if k != key}


# ----- formats


def test_hotpotqa(tmp_path):
    (question,) = load_questions(write(tmp_path, lines(HOTPOT)))
    assert question == Question(
        "h1", HOTPOT["question"], ("Steventon",), PARAGRAPHS, ("Emma", "Jane Austen"), 2
    )


def test_hotpotqa_of_hugging_face(tmp_path):
    (question,) = load_questions(write(tmp_path, lines(HUGGING_FACE)))
    assert (question.id, question.passages, question.hops) == ("f1", PARAGRAPHS, 2)
    assert question.supporting == ("Emma", "Jane Austen")


def test_2wiki_counts_evidences(tmp_path):
    (question,) = load_questions(write(tmp_path, lines(TWO_WIKI)))
    assert (question.id, question.passages, question.hops) == ("w1", PARAGRAPHS, 3)


def test_musique_orders_by_the_decomposition(tmp_path):
    (question,) = load_questions(write(tmp_path, lines(MUSIQUE)))
    assert question.answers == ("Ada", "Ada L.")
    assert question.supporting == ("First", "Last") and question.hops == 2
    assert question.passages == (Passage("Last", "l"), Passage("Noise", "n"), Passage("First", "f"))
    plain = without(MUSIQUE, "question_decomposition")
    (question,) = load_questions(write(tmp_path, lines(plain)))
    assert question.supporting == ("Last", "First") and question.hops is None


@pytest.mark.parametrize(
    ("fields", "answers"),
    [
        ({"answer": "x"}, ("x",)),
        ({"answer": ["x", "y"]}, ("x", "y")),
        ({"golden_answers": ["x", "x", "z"]}, ("x", "z")),
        ({"answers": ["x"], "answer_aliases": ["y"]}, ("x", "y")),
    ],
)
def test_open_domain(tmp_path, fields, answers):
    (question,) = load_questions(write(tmp_path, lines({"question": "Q?", "id": 7} | fields)))
    assert question == Question("7", "Q?", answers)


def test_formats_mix_and_missing_ids_are_made(tmp_path):
    open_domain = {"question": "Q?", "answer": "x"}
    path = write(tmp_path, "\n" + lines(open_domain, HOTPOT, MUSIQUE, open_domain), "nq.jsonl")
    assert [q.id for q in load_questions(path)] == ["nq-2", "h1", "3hop__1_2", "nq-5"]


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_lists_lines_and_byte_order_marks_load_alike(tmp_path, indent, mark):
    rows = [HOTPOT, TWO_WIKI, MUSIQUE]
    listed = load_questions(write(tmp_path, mark + json.dumps(rows, indent=indent).encode()))
    lined = load_questions(write(tmp_path, mark + lines(*rows).replace("\n", "\r\n\n").encode()))
    assert list(listed) == list(lined) and len(listed) == 3


def test_a_row_may_hold_unicode_line_breaks(tmp_path):
    row = {"question": "A\u2028B\x85C?", "answer": "é🙂"}
    (question,) = load_questions(write(tmp_path, json.dumps(row, ensure_ascii=False)))
    assert (question.question, question.answers) == ("A\u2028B\x85C?", ("é🙂",))


def test_limit_stops_before_what_is_broken(tmp_path):
    path = write(tmp_path, lines(HOTPOT, MUSIQUE) + "{broken")
    assert len(load_questions(path, limit=2)) == 2
    for limit in (0, -1):
        with pytest.raises(ValueError, match="limit"):
            load_questions(path, limit=limit)


# ----- broken files

BROKEN_ROWS = [
    ("{", r"one JSON value on the line"),
    ('{"question": "Q?", "ans', r"Unterminated string"),
    ("[1, 2]", r"a question as a JSON object, found list"),
    ("3", r"found int 3"),
    ("null", r"found NoneType null"),
    ("{}", r"expected a text under 'question', found the keys of an empty object"),
    ('{"question": "Q?"}', r"'answer', 'answers' or 'golden_answers', found the keys 'question'"),
    ('{"question": 3, "answer": "x"}', r"a text under 'question', found int 3"),
    ('{"question": " ", "answer": "x"}', r"'question' that is not blank"),
    ('{"question": "Q?", "answer": ""}', r"'answer' that is not blank"),
    ('{"question": "Q?", "answer": null}', r"a text under 'answer', found NoneType"),
    ('{"question": "Q?", "answer": 1990}', r"a text under 'answer', found int 1990"),
    ('{"question": "Q?", "answers": []}', r"at least one answer"),
    ('{"question": "Q?", "answer": "\\ud800"}', r"written as UTF-8"),
    ('{"question": "Q?", "answer": "x", "id": [1]}', r"'id', found list"),
    ("[" * 100_000 + "]" * 100_000, r"beyond what Python reads"),
    ('{"id": ' + "1" * 5000 + "}", r"beyond what Python reads"),
    (json.dumps(HOTPOT | {"context": "text"}), r"list or an object under 'context', found str"),
    (json.dumps(HOTPOT | {"context": [["t"]]}), r"\[title, \[sentence, ...\]\] as 'context'\[0\]"),
    (json.dumps(HOTPOT | {"context": [["t", "s"]]}), r"a list of texts under 'context'\[0\]\[1\]"),
    (json.dumps(HOTPOT | {"context": [["t", [3]]]}), r"'context'\[0\]\[1\]\[0\], found int 3"),
    (
        json.dumps(without(HOTPOT, "supporting_facts")),
        r"a list under 'supporting_facts', found the",
    ),
    (json.dumps(HOTPOT | {"supporting_facts": [3]}), r"'supporting_facts'\[0\], found int"),
    (json.dumps(HUGGING_FACE | {"context": {"title": ["t"], "sentences": []}}), r"1 titles and 0"),
    (json.dumps(HUGGING_FACE | {"context": {}}), r"'context'.'title', found NoneType"),
    (json.dumps(HUGGING_FACE | {"supporting_facts": []}), r"'supporting_facts' as a JSON object"),
    (json.dumps(MUSIQUE | {"answerable": False}), r"can be answered"),
    (json.dumps(MUSIQUE | {"paragraphs": [{"title": "t"}]}), r"'paragraph_text', found the keys"),
    (json.dumps(MUSIQUE | {"paragraphs": {}}), r"a list under 'paragraphs', found dict"),
    (json.dumps(MUSIQUE | {"question_decomposition": [1]}), r"'question_decomposition' as a JSON"),
]


@pytest.mark.parametrize(("row", "message"), BROKEN_ROWS)
def test_a_broken_row_is_named(tmp_path, row, message):
    path = write(tmp_path, lines(MUSIQUE | {"id": "good"}) + row + "\n" + lines(TWO_WIKI))
    with pytest.raises(DatasetError, match=message) as raised:
        load_questions(path)
    assert str(raised.value).startswith(f"{path}:2: expected ")
    assert len(str(raised.value)) < 400 + len(str(path))
    with pytest.warns(UserWarning, match=r"Left out 1 malformed row\(s\).*:2: ") as warned:
        questions = load_questions(path, on_error="skip")
    assert [q.id for q in questions] == ["good", "w1"] and len(warned) == 1
    assert [str(e) for e in questions.skipped] == [str(raised.value)]


def test_bytes_that_are_no_utf8_are_named(tmp_path):
    path = write(
        tmp_path, lines(HOTPOT).encode() + b'{"question": "\xff"}\n' + lines(TWO_WIKI).encode()
    )
    with pytest.raises(DatasetError, match=r":2: expected UTF-8, found byte 0xff at 14"):
        load_questions(path)
    with pytest.warns(UserWarning):
        assert len(load_questions(path, on_error="skip")) == 2
    with pytest.raises(DatasetError, match=r":2: expected UTF-8"):
        load_questions(write(tmp_path, b'[\n"\xff"]'))


def test_duplicate_ids_are_named(tmp_path):
    path = write(tmp_path, lines(HOTPOT, MUSIQUE, HOTPOT))
    with pytest.raises(DatasetError, match=r":3: .*unique.*'h1', which line 1 has already"):
        load_questions(path)
    with pytest.warns(UserWarning):
        assert [q.id for q in load_questions(path, on_error="skip")] == ["h1", "3hop__1_2"]


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("", ":1: expected a JSON list or JSONL, found an empty file"),
        ("\n \n", ":2: expected a JSON list or JSONL, found an empty file"),
        ("[]", ":1: expected at least one question, found an empty list"),
        ("[ \n", ":2: expected a JSON value, found .*it is cut off"),
        (json.dumps([HOTPOT], indent=1)[:-1], r"expected ',' or '\]' .*the end of the file"),
        (json.dumps([HOTPOT])[:-40], ":1: expected a JSON value"),
        (json.dumps([HOTPOT]) + "\nmore", ":2: expected the end of the file after the list"),
        (
            "[" + json.dumps(HOTPOT) + "\n;]",
            r":2: expected ',' or '\]' after an element, found ';'",
        ),
        ("[" + json.dumps(HOTPOT) + ",]", ":1: expected a JSON value"),
    ],
)
def test_broken_files_are_named(tmp_path, text, where):
    with pytest.raises(DatasetError, match=where):
        load_questions(write(tmp_path, text, "file.json"))


def test_what_precedes_a_cut_in_a_list_can_be_kept(tmp_path):
    text = json.dumps([HOTPOT, TWO_WIKI, MUSIQUE], indent=2)
    path = write(tmp_path, text[:-300], "cut.json")
    with pytest.warns(UserWarning, match="cut off"):
        questions = load_questions(path, on_error="skip")
    assert [q.id for q in questions] == ["h1", "w1"]
    (error,) = questions.skipped
    assert error.line <= text[:-300].count("\n") + 1


def test_a_file_without_one_good_row_raises_even_when_skipping(tmp_path):
    with pytest.raises(DatasetError, match=":1: "):
        load_questions(write(tmp_path, "{}\n{}\n"), on_error="skip")


def test_wrong_calls(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_questions(tmp_path / "absent.json")
    with pytest.raises(ValueError, match="on_error"):
        load_questions(write(tmp_path, lines(HOTPOT)), on_error="ignore")  # type: ignore[arg-type]


def test_errors_and_questions_pickle(tmp_path):
    error = DatasetError("f", 3, "x", "y")
    copied = pickle.loads(pickle.dumps(error))
    assert str(copied) == "f:3: expected x, found y" and copied.line == 3
    questions = load_questions(write(tmp_path, lines(HOTPOT)))
    assert list(pickle.loads(pickle.dumps(questions))) == list(questions)
    assert questions[0:1] == (questions[0],)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(max_examples=200)
@given(
    base=st.sampled_from([HOTPOT, HUGGING_FACE, TWO_WIKI, MUSIQUE]),
    key=st.integers(0, 9),
    value=JSON,
    cut=st.integers(1, 4000),
)
def test_hostile_values_give_a_question_or_a_dataset_error(tmp_path_factory, base, key, value, cut):
    row = dict(base)
    row[list(row)[key % len(row)]] = value
    folder = tmp_path_factory.mktemp("hostile")
    for text in (lines(row), lines(base)[:cut], json.dumps([base, row])[:cut]):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                questions = load_questions(write(folder, text))
        except DatasetError as error:
            assert error.line >= 1 and error.expected and error.found
        else:
            assert all(q.answers and q.question.strip() for q in questions)


# ----- passages


def test_passages_in_every_shape(tmp_path):
    rows = [
        {"title": "T", "text": "x"},
        {"id": "1", "contents": '"Quoted"\nline 1\nline 2'},
        {"contents": "Plain\ntext"},
        {"contents": "alone"},
        {"title": "T", "text": "both", "contents": "ignored"},
    ]
    expected = (
        Passage("T", "x"),
        Passage("Quoted", "line 1\nline 2"),
        Passage("Plain", "text"),
        Passage("alone", ""),
        Passage("T", "both"),
    )
    assert load_passages(write(tmp_path, lines(*rows))) == expected
    assert load_passages(write(tmp_path, json.dumps(rows, indent=2))) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "an empty file"),
        ("[]", "at least one passage"),
        ('{"title": "T"}', ":1: expected a text under 'text', found the keys 'title'"),
        ('{"title": "T", "text": "x"}\n"text"', ":2: expected a passage as a JSON object"),
        ('{"contents": 3}', "a text under 'contents', found int 3"),
    ],
)
def test_broken_passages_are_named(tmp_path, text, message):
    with pytest.raises(DatasetError, match=message):
        load_passages(write(tmp_path, text))


# ----- real files


def real(name):
    path = DATA / name
    return pytest.param(
        path, marks=pytest.mark.skipif(not path.exists(), reason=f"{path} is absent"), id=name
    )


@pytest.mark.parametrize("path", [real("hotpotqa_distractor_70.jsonl")])
def test_real_hotpotqa(path):
    questions = load_questions(path)
    assert len(questions) == 70 and questions.skipped == ()
    for question in questions:
        assert question.hops == 2 and 2 <= len(question.passages) <= 10
        assert set(question.supporting) <= {p.title for p in question.passages}


@pytest.mark.parametrize("path", [real("2wiki_corpus.json")])
def test_real_corpus(path):
    passages = load_passages(path)
    assert len(passages) == 6119 and passages[0].title == "Teutberga"
