"""VQAv2, GQA, TextVQA, POPE, MME: outputs of the reference scorers, every rule by hand, official files, wrong input."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest

from mllm.evaluation.protocol import AnsweredItem, ScoreOptions, Scores, match_answers
from mllm.evaluation.vqa import (
    CONTRACTIONS,
    GQA,
    MME,
    POPE,
    TextVQA,
    VQAv2,
    mme_score,
    normalise,
    remove_punctuation,
    soft_accuracy,
    tidy,
)
from mllm.files import read_lines
from tests.mllm.evaluation.builders import answered, make_item, score_files, write_json, write_jsonl

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "vqa_scoring.json").read_text(encoding="utf-8"))
SHORT = "Answer the question using a single word or phrase."
OCR = "Reference OCR token: STOP, 7"
NO_FILES = ScoreOptions()


def values_of(scores: Scores) -> dict[str, tuple[float, int]]:
    return {name: (pytest.approx(score.value), score.count) for name, score in scores.scores.items()}


# ---- the normaliser ----


def test_the_normaliser_equals_the_reference() -> None:
    for case in GOLDEN["normaliser"]:
        assert normalise(case["in"]) == case["out"], case


def test_rules_of_the_normaliser_by_hand() -> None:
    for given, expected in [
        ("  Yes \n", "yes"),
        ("none", "0"),
        ("Ten dogs", "10 dogs"),
        ("eleven", "eleven"),
        ("a red car", "red car"),
        ("The an a", ""),
        ("banana", "banana"),
        ("DONT know", "don't know"),
        ("o'clock oclock", "o'clock o'clock"),
        ("somebody'd", "somebodyd"),  # the reference's table has it the wrong way round
        ("dog's its", "dog 's its"),
        ("red, white", "red white"),  # commas are gone before punctuation is looked at
        ("1,000", "1000"),
        ("red-white", "red white"),  # a mark between words becomes a space
        ("red- white", "red white"),  # one that touches a space goes
        ("red -white-blue", "red whiteblue"),  # and then goes everywhere
        ("3.5", "3.5"),  # a period before a digit stays
        ("3. 5", "3 5"),
        ("u.s.a.", "usa"),
        ("$5.00 50% rock & roll", "$5.00 50% rock & roll"),
        ("a/b", "b"),  # the space that the slash leaves makes the article a word
        ("tab\tline\nend", "tab line end"),
        (".." * 20, "." * 8),  # 32 periods at most: the reference passes a flag as the count
        ("[one] {two} (three)", "1 2 3"),
        ("", ""),
    ]:
        assert normalise(given) == expected, given


def test_a_comma_between_digits_makes_all_marks_go_without_a_space() -> None:
    """Only on the server: EvalAI's processor has removed the commas before."""
    assert remove_punctuation("1,000-2,000/x") == "10002000x"
    assert remove_punctuation("1000-2000/x") == "1000 2000 x"
    assert tidy("1,000-2,000") == "10002000"
    assert normalise("1,000-2,000") == "1000 2000"


def test_every_contraction_comes_out_as_the_table_says() -> None:
    assert len(CONTRACTIONS) == 116
    for short, full in CONTRACTIONS.items():
        assert tidy(short) == full


def test_leaving_each_person_out_equals_the_plain_loop() -> None:
    for count in range(11):
        said = ["x"] * count + ["y"] * (10 - count)
        loop = sum(min(1, [s for j, s in enumerate(said) if j != i].count("x") / 3) for i in range(10)) / 10
        assert soft_accuracy("x", said) == pytest.approx(loop, abs=1e-12)


# ---- VQAv2 ----


def people(**said: int) -> list[str]:
    """Ten answers: word=count."""
    return [word for word, count in said.items() for _ in range(count)]


def test_vqav2_accuracy_by_hand() -> None:
    for text, said, expected in [
        ("yes", people(yes=1, no=9), 0.3),  # 9 of 10 leave-outs see one match: 9 * 1/3 / 10
        ("yes", people(yes=2, no=8), 0.6),  # 2 see one match, 8 see two: (2/3 + 16/3) / 10
        ("yes", people(yes=3, no=7), 0.9),  # 3 see two, 7 see three: (2 + 7) / 10
        ("yes", people(yes=4, no=6), 1.0),
        (" Yes.\n", people(yes=10), 1.0),  # the submission's normaliser
        ("two", people(two=5, three=5), 1.0),  # number words on both sides where people disagree
        ("two", ["2"] * 10, 1.0),
        ("two", ["two"] * 10, 0.0),  # the trap: people agree, so nobody turns their "two" into the 2 that we submit
        ("a dog", ["a dog"] * 10, 0.0),  # likewise: our article is gone, theirs stays
        ("a dog", ["a dog"] * 9 + ["cat"], 1.0),  # one cat, and all are cleaned
        ("the dog", ["dog", "a dog", "the dog", *["cat"] * 7], 0.9),
        ("dont know", ["don't know"] * 5 + ["no"] * 5, 1.0),
        ("1,000", ["1,000"] * 5 + ["1000"] * 5, 1.0),
        ("1,000", ["1,000"] * 10, 0.0),  # the submission has no comma, the agreeing people do
        ("black-white", ["black-white"] * 5 + ["black white"] * 5, 1.0),
        ("black/white", ["black and white"] * 5 + ["black white"] * 5, 1.0),
        ("", people(yes=10), 0.0),
        ("YES", ["Yes"] * 10, 0.0),  # agreeing people keep their capital
        ("YES", ["Yes"] * 9 + ["no"], 1.0),
        ("it's red", ["it's red"] * 4 + ["red"] * 6, 0.0),  # EvalAI's processor splits "it 's", the server does not
    ]:
        assert len(said) == 10
        assert VQAv2.score_answer(normalise(text), said) == pytest.approx(expected, abs=1e-12), text
    assert VQAv2.score_answer("two", ["two"] * 10) == 1.0 and VQAv2.score_answer("Two", ["two"] * 10) == 0.0


def test_vqav2_scores_by_type_of_answer(tmp_path: Path) -> None:
    said = [people(yes=10), people(two=3, six=7), people(red=10), people(no=10)]
    records = [
        {"question_id": n, "answer_type": kind, "answers": [{"answer": answer} for answer in ten]}
        for n, (ten, kind) in enumerate(zip(said, ["yes/no", "number", "other", "yes/no"], strict=True))
    ]
    annotations = write_json(tmp_path / "a.json", {"annotations": records})
    scores = VQAv2().score(answered("yes", "2", "blue", "no"), annotations, NO_FILES)
    assert values_of(scores) == {"overall": (72.5, 4), "yes/no": (100.0, 2), "number": (90.0, 1), "other": (0.0, 1)}
    assert (scores.headline, scores.protocol) == ("overall", "vqav2@evalai-normalised-custom-4")
    for count in (214354, 107394):
        assert VQAv2().protocol("evalai-normalised", count=count) == "vqav2@evalai-normalised"


def test_the_submission_of_vqav2_covers_the_split(tmp_path: Path) -> None:
    split = write_jsonl(tmp_path / "test.jsonl", [{"question_id": n, "image": "x", "text": "?"} for n in range(5)])
    [path] = VQAv2().submit(answered("A Dog.", "two", first_id=1), tmp_path, annotations=None, split=split)
    assert json.loads(path.read_text()) == [
        {"question_id": n, "answer": answer} for n, answer in enumerate(["", "dog", "2", "", ""])
    ]
    with pytest.raises(ValueError, match="7"):
        VQAv2().submit(answered("dog", first_id=7), tmp_path, annotations=None, split=split)
    # the official split has 447,793 questions and 107,394 answers: work per pair of them would never end
    count = 30_000
    split = write_jsonl(tmp_path / "test.jsonl", [{"question_id": n} for n in range(count)])
    begin = time.process_time()
    VQAv2().submit(answered(*["yes"] * count), tmp_path, annotations=None, split=split)
    assert time.process_time() - begin < 10


# ---- GQA ----


def gqa_gold(path: Path, *rows: tuple[str, str]) -> Path:
    """(answer, structural type) of questions 0, 1, ...; the type "unbalanced" is none."""
    gold = {
        str(n): {"answer": answer, "isBalanced": kind != "unbalanced", "types": {"structural": kind}}
        for n, (answer, kind) in enumerate(rows)
    }
    return write_json(path, gold)


def test_gqa_predictions_by_hand() -> None:
    for text, expected in [
        ("YES", "yes"),
        ("yes...", "yes"),  # all periods at the end go
        ("yes!", "yes!"),  # nothing else does
        (" yes", " yes"),  # spaces stay
        ("yes. ", "yes. "),  # the period is not last
        (".yes", ".yes"),
        (".", ""),
        ("Dining  Table.", "dining  table"),
        ("a dog", "a dog"),  # articles stay: no VQA normaliser here
        ("two", "two"),
        ("T-Shirt.", "t-shirt"),
        ("e.g.", "e.g"),  # the gold is not stripped, the prediction is
    ]:
        assert GQA.prediction_of(text) == expected


def test_gqa_scores_by_type(tmp_path: Path) -> None:
    rows = [("yes", "verify"), ("red", "query"), ("no", "logical"), ("cat", "query"), ("x", "choose")]
    gold = gqa_gold(tmp_path / "q.json", *rows, ("no", "unbalanced"))
    scores = GQA().score(answered("Yes.", "red", "yes", "dog", "x", "yes"), gold, NO_FILES)
    assert values_of(scores) == {
        "accuracy": (60.0, 5),  # the official script counts balanced questions only
        "binary": (200 / 3, 3),
        "open": (50.0, 2),
        "type: choose": (100.0, 1),
        "type: logical": (0.0, 1),
        "type: query": (50.0, 2),
        "type: verify": (100.0, 1),
    }
    assert list(scores.scores)[:3] == ["accuracy", "binary", "open"]
    assert scores.protocol == "gqa@exact-match-custom-6"
    assert GQA().protocol("exact-match", count=12578) == "gqa@exact-match"
    [path] = GQA().submit(answered("Yes.", "A Dog"), tmp_path, annotations=None, split=None)
    assert json.loads(path.read_text()) == [
        {"questionId": "0", "prediction": "yes"},
        {"questionId": "1", "prediction": "a dog"},
    ]


# ---- TextVQA ----


def textvqa_score(text: str, said: list[str]) -> float:
    return soft_accuracy(normalise(text), [normalise(answer) for answer in said])


def test_textvqa_equals_the_reference_to_the_last_digit() -> None:
    for case in GOLDEN["textvqa"]:
        assert textvqa_score(case["prediction"], case["answers"]) == case["score"], case


def test_textvqa_accuracy_by_hand() -> None:
    for text, said, expected in [
        ("stop", {"STOP": 10}, 1.0),  # people are normalised too, always
        ("stop", {"stop": 1, "go": 9}, 0.3),
        ("two", {"two": 10}, 1.0),  # unlike on VQAv2's server
        ("1,000", {"1,000": 10}, 1.0),
        ("$1.50", {"$1.50": 10}, 1.0),
        ("$1.50", {"150": 10}, 0.0),
        ("st. louis", {"st louis": 10}, 1.0),
        ("coca-cola", {"coca cola": 10}, 1.0),
        ("coca-cola", {"cocacola": 10}, 0.0),
        ("mcdonald's", {"mcdonald 's": 10}, 1.0),
        ("mcdonald's", {"mcdonalds": 10}, 0.0),
        ("", {"the": 10}, 1.0),  # an article alone is nothing, and so is an empty answer
        ("stop", {"stop": 2, "Stop": 1, "stop.": 1, "go": 6}, 1.0),  # spellings add up
        ("12:30", {"12:30": 10}, 1.0),
    ]:
        assert textvqa_score(text, people(**said)) == pytest.approx(expected, abs=1e-12), text


def test_textvqa_finds_the_question_in_its_prompt() -> None:
    for prompt in (
        f"What does it SAY?\n{OCR}\n{SHORT}",
        f"{OCR}\nWhat does it say?\n{SHORT}",
        f"What does it say?\n{SHORT}",
        "OCR tokens: STOP, 7. Question: What does it say? Short answer:",
    ):
        assert TextVQA().question_of(prompt) == "what does it say?"
    assert TextVQA().question_of("OCR tokens: a\nb. Question: What\nnow? Short answer:") == "what\nnow?"
    for prompt in ("What?", "a\nb\nc", "a\nb\nc\nd", "OCR tokens: no question here"):
        with pytest.raises(ValueError, match="line 3"):
            TextVQA().question_of(prompt, "q.jsonl, line 3")


def test_textvqa_keeps_questions_about_one_image_apart_and_names_its_prompts(tmp_path: Path) -> None:
    questions = ("What color?", "How many?")
    rows = [("ab", "what color?", ["red"] * 10), ("ab", "How many?", ["seven"] * 8 + ["six"] * 2)]
    rows += [("cd", "How many?", ["6"] * 10)]
    data = [{"image_id": image, "question": words, "answers": said} for image, words, said in rows]
    annotations = write_json(tmp_path / "a.json", {"data": data})
    for middles, variant in (
        ((OCR, OCR), "m4c-ocr-prompt"),
        (("", ""), "m4c-no-ocr"),
        ((OCR, ""), "m4c-mixed-prompts"),
    ):
        prompts = ["\n".join(filter(None, (w, m, SHORT))) for w, m in zip(questions, middles, strict=True)]
        asked = [{"question_id": "ab", "image": "ab.jpg", "text": prompt} for prompt in prompts]
        given = [{"question_id": "ab", "prompt": p, "text": t} for p, t in zip(prompts, ["red", "6"], strict=True)]
        path = write_jsonl(tmp_path / "q.jsonl", asked)
        scores = score_files(TextVQA(), path, write_jsonl(tmp_path / "b.jsonl", given[::-1]), annotations)
        assert scores.scores["accuracy"].value == pytest.approx(80.0)
        assert scores.protocol == f"textvqa@{variant}-custom-2"
    assert TextVQA().protocol("m4c-ocr-prompt", count=5000) == "textvqa@m4c-ocr-prompt"
    with pytest.raises(ValueError, match="line 1 and .*line 3"):
        TextVQA().read_items(write_jsonl(tmp_path / "q.jsonl", [*asked, asked[0]]), None)


def test_annotations_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    prompt = f"What?\n{SHORT}"
    for benchmark, contents in (
        (
            VQAv2(),
            [
                {"annotations": []},
                {},
                {"annotations": [{"question_id": "ab", "answers": [{"answer": "x"}] * 9}]},
                {"annotations": [{"question_id": "ab", "answers": [{"said": "x"}] * 10}]},
            ],
        ),
        (GQA(), [{}, [1], {"ab": {}}, {"ab": {"answer": "x", "isBalanced": False}}]),
        (
            TextVQA(),
            [
                {"data": []},
                {},
                {"data": [{"image_id": "ab", "question": "What?", "answers": ["x"] * 11}]},
                {"data": [{"image_id": "ab", "question": "What?"}]},
            ],
        ),
    ):
        for content in contents:
            with pytest.raises(ValueError, match=r"a\.json"):
                one = AnsweredItem(make_item("ab", prompt), "x")
                benchmark.score([one], write_json(tmp_path / "a.json", content), NO_FILES)


# ---- POPE ----


def pope_files(folder: Path, labels: dict[str, list[str]], answers: dict[str, list[str]]) -> tuple[Path, Path, Path]:
    """Question file, answers file and labels folder; ids run through all categories."""
    questions, texts = [], []
    for category, right in labels.items():
        images = [f"{category}{n}.jpg" for n in range(len(right))]
        for image, text in zip(images, answers[category], strict=True):
            record = {"question_id": len(questions), "image": image, "text": "Is there?", "category": category}
            texts.append({"question_id": len(questions), "prompt": "Is there?", "text": text})
            questions.append(record)
        rows = [{"image": image, "label": label} for image, label in zip(images, right, strict=True)]
        write_jsonl(folder / "coco" / f"coco_pope_{category}.json", rows)
    return write_jsonl(folder / "q.jsonl", questions), write_jsonl(folder / "a.jsonl", texts), folder / "coco"


def score_pope(folder: Path, labels: dict[str, list[str]], answers: dict[str, list[str]]) -> Scores:
    return score_files(POPE(), *pope_files(folder, labels, answers))


def test_pope_reads_an_answer_as_the_reference_does() -> None:
    no = ["no", "No", "not", "No.", "no,", "No, there is no dog.", "There is not a dog.", "There is not a dog. Yes"]
    no += ["There is no, dog", "yes no", "is it? no", " no"]
    yes = ["yes", "Yes, there is.", "Yes. There is no dog.", "maybe", ""]
    yes += ["Not sure", "NO"]  # only "not" in lower case is in the list
    yes += ["There isn't a dog."]  # the trap: a contraction is a yes
    yes += ["no!", "no?", "no;"]  # the mark belongs to the word
    yes += ["nothing", "Nobody", "none", "know", ".", ". no"]  # the first sentence is empty
    yes += ["no\n", "\tno"]  # words are split at spaces alone
    assert [text for text in no if POPE.says_yes(text)] == [text for text in yes if not POPE.says_yes(text)] == []


def test_pope_prints_what_the_reference_prints(tmp_path: Path) -> None:
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


def test_pope_metrics_by_hand(tmp_path: Path) -> None:
    for answers, labels, expected in [  # of each letter: yes or no; accuracy, precision, recall, f1, yes ratio
        ("yn", "yn", (1.0, 1.0, 1.0, 1.0, 0.5)),
        ("ny", "yn", (0.0, 0.0, 0.0, 0.0, 0.5)),
        ("yy", "yn", (0.5, 0.5, 1.0, 2 / 3, 1.0)),
        ("nn", "yn", (0.5, 0.0, 0.0, 0.0, 0.0)),
        ("nn", "nn", (1.0, 0.0, 0.0, 0.0, 0.0)),  # no yes anywhere: the reference divides by zero
        ("ynn", "yyn", (2 / 3, 1.0, 0.5, 2 / 3, 1 / 3)),
        ("yynnn", "ynynn", (0.6, 0.5, 0.5, 0.5, 0.4)),
    ]:
        said, right = ([{"y": "yes", "n": "no"}[letter] for letter in letters] for letters in (answers, labels))
        scores = score_pope(tmp_path, {"popular": right}, {"popular": said}).scores
        for name, value in zip(("accuracy", "precision", "recall", "f1", "yes_ratio"), expected, strict=True):
            assert scores[f"popular {name}"].value == pytest.approx(100 * value)


def test_the_headline_of_pope_is_the_mean_f1_of_the_categories(tmp_path: Path) -> None:
    labels = {"adversarial": ["yes", "no", "no"], "popular": ["yes"], "random": ["yes", "no"]}
    answers = {"adversarial": ["yes", "yes", "yes"], "popular": ["yes"], "random": ["no", "no"]}
    scores = score_pope(tmp_path, labels, answers)
    assert scores.scores["mean f1"].value == pytest.approx(100 * (0.5 + 1.0 + 0.0) / 3)
    assert scores.scores["mean f1"].count == 6
    assert scores.protocol == "pope@llava-3000-custom-6"


def test_the_protocol_of_pope_names_the_old_random_set(tmp_path: Path) -> None:
    for size in (2910, 3000):
        protocol = score_pope(tmp_path, {"random": ["yes"] * size}, {"random": ["yes"] * size}).protocol
        assert protocol == f"pope@llava-{size}-custom-{size}"
        assert POPE().protocol(f"llava-{size}", count=6000 + size) == f"pope@llava-{size}"


def test_mixed_categories_of_pope_find_their_labels_by_order_within_the_category(tmp_path: Path) -> None:
    order = ["random", "popular", "random", "popular"]
    questions = [
        {"question_id": n, "image": f"{n}.jpg", "text": "Is there?", "category": category}
        for n, category in enumerate(order)
    ]
    items = POPE().read_items(write_jsonl(tmp_path / "q.jsonl", questions), None)
    write_jsonl(tmp_path / "coco_pope_random.json", [{"label": "yes"}, {"label": "no"}])
    write_jsonl(tmp_path / "coco_pope_popular.json", [{"label": "no"}, {"label": "yes"}])
    said = [AnsweredItem(item, text) for item, text in zip(items, ["yes", "no", "no", "yes"], strict=True)]
    assert POPE().score(said, tmp_path, NO_FILES).scores["mean f1"].value == 100.0
    part = POPE().score(said[2:], tmp_path, NO_FILES)  # a part still finds the right ones
    assert part.scores["random accuracy"].value == part.scores["popular accuracy"].value == 100.0


def test_labels_and_questions_of_pope_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    questions, said, coco = pope_files(tmp_path, {"random": ["yes", "no"]}, {"random": ["yes", "no"]})
    path = coco / "coco_pope_random.json"
    lines = path.read_text().splitlines(keepends=True)
    for text, where in (
        (lines[0], "q.jsonl, line 1"),  # fewer labels
        ("".join(reversed(lines)), "random.json, line 1"),  # another order
        ("".join(lines).replace('"no"', '"maybe"'), "random.json, line 2"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=where):
            score_files(POPE(), questions, said, coco)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="coco_pope_random.json"):
        score_files(POPE(), questions, said, coco)
    for fields in ({"category": "easy"}, {}):
        wrong = write_jsonl(tmp_path / "w.jsonl", [{"question_id": 1, "image": "x.jpg", "text": "Is there?", **fields}])
        with pytest.raises(ValueError, match="w.jsonl, line 1"):
            POPE().read_items(wrong, None)


# ---- MME ----

Gold = dict[str, list[tuple[str, str]]]
"""Subtask -> the two right answers about each image."""


def mme_release(folder: Path, gold: Gold, *, space: str = " ") -> Path:
    for subtask, pairs in gold.items():
        for n, pair in enumerate(pairs):
            path = folder / subtask / f"{n:04d}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            rows = [f"Question {i}?{space}Please answer yes or no.\t{answer}" for i, answer in enumerate(pair)]
            path.write_text("\n".join(rows) + "\n")
    return folder


def mme_files(folder: Path, gold: Gold, texts: list[str]) -> tuple[Path, Path]:
    """Question file and answers file."""
    questions = [
        {"question_id": f"{subtask}/{n:04d}.png", "image": "x.png", "text": f"Question {i}?\n{SHORT}"}
        for subtask, pairs in gold.items()
        for n in range(len(pairs))
        for i in range(2)
    ]
    answers = [
        {"question_id": q["question_id"], "prompt": q["text"], "text": text}
        for q, text in zip(questions, texts, strict=False)
    ]
    return write_jsonl(folder / "q.jsonl", questions[: len(texts)]), write_jsonl(folder / "a.jsonl", answers)


def score_mme(folder: Path, gold: Gold, texts: list[str], *, space: str = " ") -> Scores:
    release = mme_release(folder / "release", gold, space=space)
    return score_files(MME(), *mme_files(folder, gold, texts), release)


def test_mme_reads_an_answer_as_the_official_tool_does() -> None:
    for verdict, texts in {
        "yes": ["yes", "YES", "Yes, it is.", "eyes", " yes", "'Yes'", "\nyes", "yesno"],
        "no": ["no", "No.", "not", "None", "know", "unno", "  no", "yno", "noye"],
        "other": ["  yes", "   no", "The answer is yes", "It is not", "", "y", "n", "true"],  # spaces count
    }.items():
        assert {MME.verdict_of(text) for text in texts} == {verdict}


def test_a_subtask_of_mme_by_hand() -> None:
    for rights, expected in [  # right answers about each image; accuracy + accuracy+
        ([2], 200.0),
        ([0], 0.0),
        ([1, 1], 50.0),  # half of the answers, no pair
        ([2, 0], 100.0),  # half of the answers, half of the pairs
        ([2, 1], 125.0),
        ([2, 2, 0], 400 / 3),
        ([0, 0, 1], 100 / 6),
    ]:
        assert mme_score(np.array(rights), axis=-1) == pytest.approx(expected)


def test_totals_of_mme_add_up_the_subtasks(tmp_path: Path) -> None:
    assert (len(MME.perception), len(MME.cognition), len(set(MME.subtasks))) == (10, 4, 14)
    gold = {subtask: [("Yes", "No")] for subtask in MME.subtasks}
    texts = [text for n in range(14) for text in (("yes", "no") if n % 2 else ("yes", "yes"))]
    scores = score_mme(tmp_path, gold, texts)
    assert scores.headline == "perception"
    assert scores.scores["perception"].value == pytest.approx(5 * 200 + 5 * 50)
    assert scores.scores["cognition"].value == pytest.approx(2 * 200 + 2 * 50)
    assert scores.scores["OCR"].value == 200.0 and scores.scores["existence"].value == 50.0
    assert scores.scores["existence accuracy"].value == 50.0 and scores.scores["existence accuracy+"].value == 0.0
    assert scores.protocol == "mme@official-custom-28"
    assert MME().protocol("official", count=2374) == "mme@official"


def test_mme_has_no_total_of_a_part_of_the_subtasks(tmp_path: Path) -> None:
    gold = {"count": [("Yes", "No")], "OCR": [("No", "No")]}
    for space in (" ", "  "):  # some files of the release have two
        scores = score_mme(tmp_path, gold, ["yes", "no", "no", "maybe"], space=space)
        assert "perception" not in scores.scores and "cognition" not in scores.scores
        assert scores.scores["count"].value == 200.0
        assert scores.scores["OCR"].value == 50.0  # "maybe" is neither and counts as wrong


def test_both_layouts_of_the_release_of_mme_are_read(tmp_path: Path) -> None:
    release = mme_release(tmp_path, {"count": [("Yes", "No")]})
    (release / "OCR" / "questions_answers_YN").mkdir(parents=True)
    (release / "count" / "0000.txt").replace(release / "OCR" / "questions_answers_YN" / "7.txt")
    assert set(MME().read_gold(release)) == {
        ("OCR", "7.txt", f"Question {n}? Please answer yes or no.") for n in range(2)
    }


def test_the_files_of_the_official_tool_of_mme(tmp_path: Path) -> None:
    gold = {"count": [("Yes", "No")], "OCR": [("No", "Yes")]}
    questions, answers = mme_files(tmp_path, gold, ["Yes", "No\tor\nyes", "no", "yes"])
    matched = match_answers(MME(), MME().read_items(questions, None), read_lines(answers), answers=answers)
    release = mme_release(tmp_path / "release", gold)
    paths = MME().submit(matched, tmp_path, annotations=release, split=None)
    assert [path.name for path in paths] == ["count.txt", "OCR.txt"]
    assert paths[0].read_text().splitlines() == [
        "0000.txt\tQuestion 0? Please answer yes or no.\tYes\tYes",
        "0000.txt\tQuestion 1? Please answer yes or no.\tNo\tNo or yes",
    ]
    with pytest.raises(ValueError, match="--annotations"):
        MME().submit(matched, tmp_path, annotations=None, split=None)


def test_questions_and_files_of_mme_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    gold = {"count": [("Yes", "No")]}
    with pytest.raises(ValueError, match="count/0000.txt .*q.jsonl, line 1"):  # one answer about an image
        score_mme(tmp_path, gold, ["yes"])
    for question_id in ("0001.png", "dancing/0001.png", "7"):
        path = write_jsonl(tmp_path / "w.jsonl", [{"question_id": question_id, "image": "x.png", "text": "What?"}])
        with pytest.raises(ValueError, match="w.jsonl, line 1"):
            MME().read_items(path, None)
    with pytest.raises(ValueError, match="q.jsonl, line 1"):  # not published
        release = mme_release(tmp_path / "other", {"OCR": [("Yes", "No")]})
        score_files(MME(), *mme_files(tmp_path, gold, ["yes", "no"]), release)
    with pytest.raises(ValueError, match="none"):
        MME().read_gold(tmp_path / "nothing")
    with pytest.raises(ValueError, match="0000.txt, line 2"):
        MME().read_gold(mme_release(tmp_path / "wrong", {"count": [("Yes", "Perhaps")]}))
