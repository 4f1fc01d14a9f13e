"""Ten questions before and after: variants, files, and the gain with its interval."""

import json
import pytest
import sys
import tomllib
import torch
from ect_nb.course import quiz
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import teaching

KEY = tomllib.loads((ROOT / "tools" / "teaching.toml").read_text(encoding="utf-8"))["quiz"]["key"]


def letters(when, name, right):
    "What `name` writes to have the first `right` questions right and the others wrong."
    said = []
    for k, order in quiz.variant(when, name):
        key = "abcd".index(KEY[k])
        option = key if k < right else next(o for o in order if o != key)
        said.append("abcd"[order.index(option)])
    return " ".join(said)


def test_ten_questions_with_a_key_of_their_own():
    assert len(quiz.QUESTIONS) == len(KEY) == 10
    for question, k in zip(quiz.QUESTIONS, KEY):
        assert "abcd".index(k) < len(question.options) >= 3
        assert len(set(question.options)) == len(question.options)
    package = "".join(p.read_text(encoding="utf-8") for p in (ROOT / "ect_nb").rglob("*.py"))
    assert KEY not in package


def test_every_variant_asks_all_and_another_one_each_time():
    sheets = {quiz.sheet(when, f"student {i}") for when in ("before", "after") for i in range(20)}
    assert len(sheets) == 40
    for sheet in sheets:
        assert all(q.ask in sheet and all(o in sheet for o in q.options) for q in quiz.QUESTIONS)
    assert quiz.sheet("before", "Ada ") == quiz.sheet("before", "ada")


@pytest.mark.parametrize("said", ["", "a b c", "aaaaaaaaaaa", "aaaaaaaaa!", "zzzzzzzzzz"])
def test_what_is_no_answer_is_a_sentence_and_no_file(said, tmp_path):
    with pytest.raises(ValueError):
        quiz.answered("before", "Ada", said, tmp_path)
    with pytest.raises(ValueError, match="before"):
        quiz.sheet("during", "Ada")
    assert not list(tmp_path.iterdir())


def test_answers_come_back_through_files_whatever_the_order(tmp_path, capsys):
    for i in range(6):
        name = f"Zoë {i}/../x"
        for when, right in (("before", 3 + i % 2), ("after", 6 + i % 3)):
            quiz.answered(when, name, letters(when, name, right), tmp_path)
    quiz.answered("before", "absent later", "-" * 10, tmp_path)
    (tmp_path / "quiz_broken.json").write_text("{")
    names, before, after, wrong = quiz.of_folder(tmp_path, KEY)
    assert len(names) == 6 and wrong == ["quiz_broken.json holds no answers"]
    assert before == pytest.approx([0.3 + 0.1 * (i % 2) for i in range(6)])
    assert after == pytest.approx([0.6 + 0.1 * (i % 3) for i in range(6)])
    teaching.main("gain", str(tmp_path))
    assert "6 answered twice: 35% right before,\n70% after; gain 0.54 [" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="five or more"):
        teaching.main("gain", str(tmp_path / "nobody"))


def test_the_gain_is_hakes_and_its_interval_is_over_students():
    before, after = torch.tensor([0.2, 0.4, 0.6, 0.4, 0.4]), torch.tensor([0.5, 0.7, 0.9, 0.7, 0.7])
    g, low, high = quiz.gain(before, after)
    assert g == pytest.approx(0.3 / 0.6) and low < g < high
    same = quiz.gain(torch.full((30,), 0.4), torch.full((30,), 0.7))
    assert same[1] == pytest.approx(same[0]) == pytest.approx(same[2])
    assert torch.isnan(quiz.hake(torch.ones(5), torch.ones(5)))
    with pytest.raises(ValueError, match="five or more"):
        quiz.gain([0.1], [0.2])


def test_an_answers_file_says_nothing_of_what_is_right(tmp_path):
    file = quiz.answered("before", "Ada", letters("before", "Ada", 10), tmp_path)
    said = json.loads(file.read_text(encoding="utf-8"))
    assert set(said) == {"quiz", "when", "name", "at", "answers"}
