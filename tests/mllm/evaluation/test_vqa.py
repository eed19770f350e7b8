"""VQAv2, GQA, TextVQA, POPE, MME: outputs of the reference scorers, rules by hand, official files, wrong input."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mllm.evaluation import vqa
from mllm.evaluation.protocol import AnsweredItem, Benchmark, ScoreOptions, Scores, match_answers
from mllm.evaluation.vqa import GQA, MME, POPE, TextVQA, VQAv2, normalise, soft_accuracy
from mllm.files import read_lines
from tests.mllm.evaluation.builders import answered, make_item, score_files, write_json, write_jsonl

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "vqa_scoring.json").read_text(encoding="utf-8"))
SHORT = "Answer the question using a single word or phrase."
OCR = "Reference OCR token: STOP, 7"
NO_FILES = ScoreOptions()


def values_of(scores: Scores) -> dict[str, tuple[float, int]]:
    return {name: (pytest.approx(score.value), score.count) for name, score in scores.scores.items()}


# ---- the normaliser and the accuracy over ten people ----


def test_the_normaliser_and_soft_accuracy_equal_the_reference() -> None:
    for case in GOLDEN["normaliser"]:
        assert normalise(case["in"]) == case["out"], case
    for case in GOLDEN["textvqa"]:
        people = [normalise(answer) for answer in case["answers"]]
        assert soft_accuracy(normalise(case["prediction"]), people) == case["score"], case
    for count in range(11):
        said = ["x"] * count + ["y"] * (10 - count)
        loop = sum(min(1, [s for j, s in enumerate(said) if j != i].count("x") / 3) for i in range(10)) / 10
        assert soft_accuracy("x", said) == pytest.approx(loop, abs=1e-12)
    assert vqa.tidy("1,000-2,000") == "10002000"  # on the server a comma between digits makes all marks go
    assert len(vqa.contractions()) == 116 and all(vqa.tidy(one) == full for one, full in vqa.contractions().items())


# ---- VQAv2 ----


def people(**said: int) -> list[str]:
    """Ten answers: word=count."""
    return [word for word, count in said.items() for _ in range(count)]


def test_vqav2_accuracy_by_hand() -> None:
    for text, said, expected in (
        ("yes", people(yes=1, no=9), 0.3),  # 9 of 10 leave-outs see one match: 9 * 1/3 / 10
        ("yes", people(yes=3, no=7), 0.9),  # 3 see two, 7 see three: (2 + 7) / 10
        (" Yes.\n", people(yes=10), 1.0),  # the submission's normaliser
        ("two", people(two=5, three=5), 1.0),  # number words on both sides where people disagree
        ("two", ["two"] * 10, 0.0),  # the trap: people agree, so nobody turns their "two" into the 2 that we submit
        ("a dog", ["a dog"] * 10, 0.0),  # likewise: our article is gone, theirs stays
        ("a dog", ["a dog"] * 9 + ["cat"], 1.0),  # one cat, and all are cleaned
        ("YES", ["Yes"] * 10, 0.0),  # agreeing people keep their capital
        ("it's red", ["it's red"] * 4 + ["red"] * 6, 0.0),  # EvalAI's processor splits "it 's", the server does not
    ):
        assert VQAv2.score_answer(normalise(text), said) == pytest.approx(expected, abs=1e-12), text


def test_vqav2_scores_by_type_of_answer_and_submits_the_complete_split(tmp_path: Path) -> None:
    said = [people(yes=10), people(two=3, six=7), people(red=10), people(no=10)]
    records = [
        {"question_id": n, "answer_type": kind, "answers": [{"answer": answer} for answer in ten]}
        for n, (ten, kind) in enumerate(zip(said, ["yes/no", "number", "other", "yes/no"], strict=True))
    ]
    annotations, given = write_json(tmp_path / "a.json", {"annotations": records}), answered("yes", "2", "blue", "no")
    as_strings = [AnsweredItem(make_item(str(one.item.question_id)), one.text) for one in given]
    for answers in (given, as_strings):
        scores = VQAv2().score(answers, annotations, NO_FILES)
        assert values_of(scores) == {"overall": (72.5, 4), "yes/no": (100.0, 2), "number": (90.0, 1), "other": (0.0, 1)}
    assert (scores.headline, scores.protocol) == ("overall", "vqav2@evalai-normalised-custom-4")
    for answers in (None, 7, ["yes"] * 9):
        bad = write_json(tmp_path / "bad.json", {"annotations": [{**records[0], "answers": answers}]})
        with pytest.raises(ValueError, match="10 human answers"):
            VQAv2().score(given[:1], bad, NO_FILES)
    split = write_jsonl(tmp_path / "test.jsonl", [{"question_id": n, "image": "x", "text": "?"} for n in range(5)])
    for answers in (answered("A Dog.", "two", first_id=1), [replace(a, text="2") for a in as_strings[1:3]]):
        [path] = VQAv2().submit(answers, tmp_path, annotations=None, split=split)
        found = json.loads(path.read_text())
        assert [one["question_id"] for one in found] == list(range(5)) and found[2]["answer"] == "2"
        assert [bool(one["answer"]) for one in found] == [False, True, True, False, False]


# ---- GQA ----


def test_gqa_scores_by_type_and_submits_predictions(tmp_path: Path) -> None:
    for text, expected in {"yes...": "yes", "yes!": "yes!", " yes": " yes", "yes. ": "yes. ", "A Dog": "a dog"}.items():
        assert GQA.prediction_of(text) == expected  # final periods go, and nothing else
    rows = [("yes", "verify"), ("red", "query"), ("no", "logical"), ("cat", "query"), ("x", "choose"), ("no", None)]
    records = [{"answer": a, "isBalanced": kind is not None, "types": {"structural": kind}} for a, kind in rows]
    gold = {str(n): record for n, record in enumerate(records)}
    path = write_json(tmp_path / "q.json", gold)
    scores = GQA().score(answered("Yes.", "red", "yes", "dog", "x", "yes"), path, NO_FILES)
    assert list(values_of(scores).items()) == [
        ("accuracy", (60.0, 5)),  # the official script counts balanced questions only
        ("binary", (200 / 3, 3)),
        ("open", (50.0, 2)),
        ("type: choose", (100.0, 1)),
        ("type: logical", (0.0, 1)),
        ("type: query", (50.0, 2)),
        ("type: verify", (100.0, 1)),
    ]
    assert scores.protocol == "gqa@exact-match-custom-6"
    [path] = GQA().submit(answered("Yes.", "A Dog"), tmp_path, annotations=None, split=None)
    expected = [{"questionId": "0", "prediction": "yes"}, {"questionId": "1", "prediction": "a dog"}]
    assert json.loads(path.read_text()) == expected


# ---- TextVQA ----


def test_textvqa_finds_the_question_in_its_prompt() -> None:
    for prompt in (
        f"What does it SAY?\n{OCR}\n{SHORT}",
        f"{OCR}\nWhat does it say?\n{SHORT}",
        f"What does it say?\n{SHORT}",
        "OCR tokens: STOP,\n7. Question: What does it say? Short answer:",
    ):
        assert TextVQA().question_of(prompt) == "what does it say?"
    for prompt in ("What?", "a\nb\nc", "a\nb\nc\nd", "OCR tokens: no question here"):
        with pytest.raises(ValueError, match="line 3"):
            TextVQA().question_of(prompt, "q.jsonl, line 3")


def test_textvqa_keeps_questions_about_one_image_apart_and_names_its_prompts(tmp_path: Path) -> None:
    rows = [("ab", "what color?", ["red"] * 10), ("ab", "How many?", ["seven"] * 8 + ["six"] * 2)]
    data = [{"image_id": image, "question": words, "answers": said} for image, words, said in rows]
    annotations = write_json(tmp_path / "a.json", {"data": [*data, {**data[1], "image_id": "cd"}]})
    for middles, variant in (((OCR, OCR), "ocr-prompt"), (("", ""), "no-ocr"), ((OCR, ""), "mixed-prompts")):
        prompts = ["\n".join(filter(None, (row[1], m, SHORT))) for row, m in zip(rows, middles, strict=True)]
        asked = [{"question_id": "ab", "image": "ab.jpg", "text": prompt} for prompt in prompts]
        given = [{"question_id": "ab", "prompt": p, "text": t} for p, t in zip(prompts, ["red", "6"], strict=True)]
        path = write_jsonl(tmp_path / "q.jsonl", asked)
        scores = score_files(TextVQA(), path, write_jsonl(tmp_path / "b.jsonl", given[::-1]), annotations)
        assert scores.scores["accuracy"].value == pytest.approx(80.0)
        assert scores.protocol == f"textvqa@m4c-{variant}-custom-2"
    with pytest.raises(ValueError, match="line 1 and .*line 3"):
        TextVQA().read_items(write_jsonl(tmp_path / "q.jsonl", [*asked, asked[0]]), None)


# ---- POPE ----

Labels = dict[str, list[str]]
"""By category, the right answers, or those that were given."""


def pope_files(folder: Path, labels: Labels, answers: Labels) -> tuple[Path, Path, Path]:
    """Question file, answers file and labels folder; ids run through all categories."""
    questions, texts = [], []
    for category, right in labels.items():
        images = [f"{category}{n}.jpg" for n in range(len(right))]
        for image, text in zip(images, answers[category], strict=True):
            texts.append({"question_id": len(questions), "prompt": "Is there?", "text": text})
            questions.append({"question_id": len(questions), "image": image, "text": "Is there?", "category": category})
        rows = [{"image": image, "label": label} for image, label in zip(images, right, strict=True)]
        write_jsonl(folder / "coco" / f"coco_pope_{category}.json", rows)
    return write_jsonl(folder / "q.jsonl", questions), write_jsonl(folder / "a.jsonl", texts), folder / "coco"


def score_pope(folder: Path, labels: Labels, answers: Labels) -> Scores:
    return score_files(POPE(), *pope_files(folder, labels, answers))


def test_pope_reads_answers_and_prints_what_the_reference_prints(tmp_path: Path) -> None:
    no = ["no", "No, there is no dog.", "There is not a dog. Yes", "There is no, dog", "yes no", "is it? no", " no"]
    yes = ["Yes. There is no dog.", "maybe", "", "nothing", "know", ". no"]  # only the first sentence is read
    yes += ["Not sure", "NO", "There isn't a dog.", "no!", "no?", "no\n"]  # traps: only no, No and not, between spaces
    assert [text for text in no if POPE.says_yes(text)] == [text for text in yes if not POPE.says_yes(text)] == []
    golden = GOLDEN["pope"]
    texts = [answer["text"] for answer in golden["answers"]]
    scores = score_pope(tmp_path, {"random": golden["labels"]}, {"random": texts})
    lines = golden["printed"].strip().splitlines()
    counts = scores.extra["counts"]["random"]
    names = ("true_positive", "false_positive", "true_negative", "false_negative")
    assert lines[1].split("\t") == [str(counts[name]) for name in names]
    titles = {"Accuracy": "accuracy", "Precision": "precision", "Recall": "recall", "F1 score": "f1"}
    for title, metric in (titles | {"Yes ratio": "yes_ratio"}).items():
        [printed] = [float(line.partition(": ")[2]) for line in lines if line.startswith(title)]
        assert scores.scores[f"random {metric}"].value == pytest.approx(100 * printed, abs=1e-9)
    none = score_pope(tmp_path, {"popular": ["no", "no"]}, {"popular": ["no", "no"]}).scores
    assert none["popular f1"].value == 0.0  # no yes anywhere: the reference divides by zero


def test_the_headline_of_pope_is_the_mean_f1_and_its_protocol_names_the_random_set(tmp_path: Path) -> None:
    labels = {"adversarial": ["yes", "no", "no"], "popular": ["yes"], "random": ["yes", "no"]}
    answers = {"adversarial": ["yes", "yes", "yes"], "popular": ["yes"], "random": ["no", "no"]}
    score = score_pope(tmp_path, labels, answers).scores["mean f1"]
    assert score.value == pytest.approx(100 * (0.5 + 1.0 + 0.0) / 3) and score.count == 6
    questions, said, coco = pope_files(tmp_path, {"random": ["yes"] * 2910}, {"random": ["yes"] * 2910})
    matched = match_answers(POPE(), POPE().read_items(questions, None), read_lines(said), answers=said)[:1]
    assert POPE().score(matched, coco, NO_FILES).protocol == "pope@llava-2910-custom-1"  # LLaVA's older random set
    assert [POPE().protocol(f"llava-{n}", count=6000 + n) for n in (2910, 3000)] == [
        "pope@llava-2910",
        "pope@llava-3000",
    ]


def test_labels_of_pope_are_found_by_their_order_within_the_category_or_refused(tmp_path: Path) -> None:
    labels = {"random": ["yes", "no"], "popular": ["no", "yes"]}
    questions, said, coco = pope_files(tmp_path, labels, labels)
    lines = questions.read_text().splitlines(keepends=True)
    questions.write_text("".join(lines[n] for n in (0, 2, 1, 3)))  # the categories mixed
    matched = match_answers(POPE(), POPE().read_items(questions, None), read_lines(said), answers=said)
    for part in (matched, matched[2:]):
        scores = POPE().score(part, coco, NO_FILES).scores
        assert scores["random accuracy"].value == scores["popular accuracy"].value == 100.0
    path = coco / "coco_pope_random.json"
    first, second = path.read_text().splitlines(keepends=True)
    for text, where in ((first, r"q\.jsonl, line 1"), (second + first, r"random\.json, line 1")):
        path.write_text(text)
        with pytest.raises(ValueError, match=where):
            score_files(POPE(), questions, said, coco)


# ---- MME ----

Gold = dict[str, tuple[str, str]]
"""Subtask -> the two right answers about its image."""


def mme_files(folder: Path, gold: Gold, texts: list[str]) -> tuple[Path, Path, Path]:
    questions = []
    for subtask, pair in gold.items():
        rows = [f"Question {i}? Please answer yes or no.\t{answer}\n" for i, answer in enumerate(pair)]
        (folder / "release" / subtask).mkdir(parents=True, exist_ok=True)
        (folder / "release" / subtask / "0000.txt").write_text("".join(rows))
        named = {"question_id": f"{subtask}/0000.png", "image": "x.png"}
        questions += [{**named, "text": f"Question {i}?\n{SHORT}"} for i in range(2)]
    given = zip(questions, texts, strict=False)
    answers = [{"question_id": q["question_id"], "prompt": q["text"], "text": text} for q, text in given]
    path = write_jsonl(folder / "q.jsonl", questions[: len(texts)])
    return path, write_jsonl(folder / "a.jsonl", answers), folder / "release"


def test_mme_reads_and_scores_answers_as_the_official_tool_does(tmp_path: Path) -> None:
    for said, texts in {
        "yes": ["yes", "Yes, it is.", "eyes", "'Yes'", "\nyes", "yesno"],
        "no": ["No.", "not", "None", "know", "  no", "yno"],
        "other": ["  yes", "   no", "The answer is yes", "", "y", "true"],  # spaces count
    }.items():
        assert {MME.yes_or_no(text) for text in texts} == {said}
    # right answers about each image; accuracy + accuracy+
    for rights, expected in (([2], 200.0), ([1, 1], 50.0), ([2, 0], 100.0), ([2, 2, 0], 400 / 3)):
        assert vqa.mme_score(np.array(rights), axis=-1) == pytest.approx(expected)
    assert (len(MME.perception), len(MME.cognition), len(set(MME.subtasks))) == (10, 4, 14)
    said = [text for n in range(14) for text in (("yes", "no") if n % 2 else ("yes", "yes"))]
    found = score_files(MME(), *mme_files(tmp_path / "all", dict.fromkeys(MME.subtasks, ("Yes", "No")), said))
    values = {name: score.value for name, score in found.scores.items()}
    assert (found.headline, found.protocol) == ("perception", "mme@official-custom-28")
    assert values["perception"] == pytest.approx(5 * 200 + 5 * 50)
    assert values["cognition"] == pytest.approx(2 * 200 + 2 * 50)
    assert values["OCR"] == 200.0 and values["existence"] == values["existence accuracy"] == 50.0
    gold, said = {"count": ("Yes", "No"), "OCR": ("No", "No")}, ["yes", "no", "no", "maybe"]
    part = score_files(MME(), *mme_files(tmp_path, gold, said)).scores
    assert not {"perception", "cognition"} & set(part)
    assert part["count"].value == 200.0 and part["OCR"].value == 50.0  # "maybe" is wrong


def test_files_of_mme_are_written_for_the_official_tool_and_read_with_any_line_ends(tmp_path: Path) -> None:
    gold = {"count": ("Yes", "No"), "OCR": ("No", "Yes")}
    questions, answers, release = mme_files(tmp_path, gold, ["Yes\r\nI\u2028do\x85\tsay", "No", "no", "yes"])
    matched = match_answers(MME(), MME().read_items(questions, None), read_lines(answers), answers=answers)
    paths = MME().submit(matched, tmp_path, annotations=release, split=None)
    assert [path.name for path in paths] == ["count.txt", "OCR.txt"]
    assert paths[0].read_text().splitlines() == [
        "0000.txt\tQuestion 0? Please answer yes or no.\tYes\tYes  I do  say",
        "0000.txt\tQuestion 1? Please answer yes or no.\tNo\tNo",
    ]
    before = MME().read_gold(release)
    for file in release.rglob("*.txt"):
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n"))
    assert MME().read_gold(release) == before


# ---- what does not fit ----


def test_questions_and_annotations_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    one = AnsweredItem(make_item("ab", f"What?\n{SHORT}"), "x")
    wrong: list[tuple[Benchmark, dict]] = [
        (VQAv2(), {}),
        (VQAv2(), {"annotations": [{"question_id": "ab", "answers": [{"answer": "x"}] * 9}]}),
        (GQA(), {"ab": {}}),
        (GQA(), {"ab": {"answer": "x", "isBalanced": False}}),
        (TextVQA(), {"data": [{"image_id": "ab", "question": "What?", "answers": ["x"] * 11}]}),
    ]
    for benchmark, content in wrong:
        with pytest.raises(ValueError, match=r"a\.json"):
            benchmark.score([one], write_json(tmp_path / "a.json", content), NO_FILES)
    question = {"question_id": "dancing/1.png", "image": "x.jpg", "text": "Is there?", "category": "easy"}
    for benchmark in (POPE(), MME()):
        with pytest.raises(ValueError, match=r"w\.jsonl, line 1"):
            benchmark.read_items(write_jsonl(tmp_path / "w.jsonl", [question]), None)
    gold = {"count": ("Yes", "No")}
    with pytest.raises(ValueError, match=r"count/0000.txt .*q\.jsonl, line 1"):  # one answer about an image
        score_files(MME(), *mme_files(tmp_path, gold, ["yes"]))
    questions, answers, _ = mme_files(tmp_path, gold, ["yes", "no"])
    with pytest.raises(ValueError, match=r"q\.jsonl, line 1"):  # not published
        score_files(MME(), questions, answers, mme_files(tmp_path / "other", {"OCR": ("Yes", "No")}, [])[2])
