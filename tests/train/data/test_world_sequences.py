"""Batches of the world: which episodes they are made of."""

from __future__ import annotations

from pathlib import Path
from random import Random

import numpy as np
import pytest

from mllm.config import MLLMConfig
from mllm.conversation import CodesPart
from mllm.vocabulary import extend_tokenizer, load_text_tokenizer
from mllm.world.dialogue import JOBS, ImageRef, make_dialogue, make_episode
from mllm.world.outline import outline_of
from mllm.world.questions import propose_question
from train.data.world import NUM_PICTURES, EpisodeSet, WorldBatches, WorldCodes, to_messages
from train.recipe import WorldData

EPISODES = 60


@pytest.fixture
def codes(tmp_path: Path) -> WorldCodes:
    """Codes that say which episode and picture they are of."""
    found = WorldCodes(tmp_path, EpisodeSet(num_episodes=EPISODES, dense_every=4, seed=0, grids=[(2, 2)]))
    numbers_ES = np.arange(EPISODES * NUM_PICTURES, dtype=np.uint16).reshape(EPISODES, NUM_PICTURES, 1, 1)
    np.save(tmp_path / "codes-00000.npy", np.broadcast_to(numbers_ES, (EPISODES, NUM_PICTURES, 2, 4)))
    return found


def batches(codes: WorldCodes, text_tokenizer_file: Path, **data: object) -> WorldBatches:
    return WorldBatches(
        WorldData(episodes=EPISODES, dense_every=4, **data),
        codes,
        tokenizer=load_text_tokenizer(text_tokenizer_file),
        config=MLLMConfig(),
        length=320,
        rows=2,
        num_batches=3,
    )


@pytest.mark.parametrize(("low", "high"), [(1, 1), (1, 2), (2, 2), (2, 3)])
@pytest.mark.parametrize("is_dense", [False, True])
def test_a_stage_sees_scenes_of_the_recipes_size_only(
    codes: WorldCodes, text_tokenizer_file: Path, low: int, high: int, is_dense: bool
) -> None:
    data = batches(codes, text_tokenizer_file, min_objects=low, max_objects=high)
    found = [data.draw_episode(Random(n), is_dense=is_dense, is_drawn=False) for n in range(50)]
    assert {len(episode.scene.objects) for _, episode in found} == set(range(low, high + 1))
    assert all(episode == make_episode(index) for index, episode in found)
    if is_dense:
        assert all(index % 4 == 0 for index, _ in found)


def test_without_a_limit_scenes_of_every_size_are_seen(codes: WorldCodes, text_tokenizer_file: Path) -> None:
    data = batches(codes, text_tokenizer_file)
    found = [data.draw_episode(Random(n), is_dense=False, is_drawn=False)[1] for n in range(80)]
    assert {len(episode.scene.objects) for episode in found} == {1, 2, 3, 4}


def test_drawings_from_words_are_centred_where_some_episodes_are(tmp_path: Path, text_tokenizer_file: Path) -> None:
    episodes = EpisodeSet(num_episodes=16, dense_every=4, seed=0, grids=[(2, 2)], centred_digits=2)
    data = batches(WorldCodes(tmp_path, episodes), text_tokenizer_file)
    for is_drawn, expected in ((True, {True}), (False, {True, False})):
        found = [data.draw_episode(Random(n), is_dense=n % 2 == 0, is_drawn=is_drawn)[0] for n in range(40)]
        assert {episodes.is_centred(index) for index in found} == expected


def test_no_scene_that_small_is_said(tmp_path: Path, text_tokenizer_file: Path) -> None:
    assert len(make_episode(0, seed=1).scene.objects) == 2
    data = batches(
        WorldCodes(tmp_path, EpisodeSet(num_episodes=1, dense_every=4, seed=1, grids=[(2, 2)])),
        text_tokenizer_file,
        max_objects=1,
    )
    with pytest.raises(ValueError, match="of 1 to 1 objects among 1 episodes"):
        data.draw_episode(Random(0), is_dense=False, is_drawn=False)


def test_a_row_that_no_sample_fits_into_is_said(codes: WorldCodes, text_tokenizer_file: Path) -> None:
    data = batches(codes, text_tokenizer_file, jobs={"talk": 1.0})
    data.length = 5
    with pytest.raises(ValueError, match="found 1000 one after another that are longer than a row of 5 positions"):
        data[0]


@pytest.mark.parametrize(("low", "high"), [(1, 0), (1, 5), (0, 2), (3, 2)])
def test_numbers_of_objects_that_no_scene_has_are_refused(low: int, high: int) -> None:
    with pytest.raises(ValueError, match=f"min_objects is {low} and data.max_objects {high}; scenes have 1 to 4"):
        WorldData(min_objects=low, max_objects=high)


def test_questions_have_slips_too(
    codes: WorldCodes, text_tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = batches(codes, text_tokenizer_file, jobs={"ask": 1.0}, questions=4)
    asked.config = MLLMConfig(num_codebooks=2, image_size=32)
    before = [asked.draw_sequence(Random(n)).token_ids_T.tolist() for n in range(5)]
    monkeypatch.setattr("mllm.world.dialogue.TYPO_SHARE", 1.0)
    after = [asked.draw_sequence(Random(n)).token_ids_T.tolist() for n in range(5)]
    assert all(one != two for one, two in zip(before, after, strict=True))


def test_centred_episodes_need_outlines() -> None:
    for fields in ({"centred": True, "outline_digits": 2}, {"outline_digits": 2}):
        with pytest.raises(ValueError, match="data.outlines is false, .*; set it to true"):
            WorldData(**fields)
    with pytest.raises(ValueError, match="data.outline_digits 1 is up to half a position away"):
        WorldData(outlines=True, centred=True)


def test_where_no_episode_is_centred_it_is_said(tmp_path: Path, text_tokenizer_file: Path) -> None:
    few = WorldCodes(tmp_path, EpisodeSet(num_episodes=4, dense_every=4, seed=0, grids=[(2, 2)], centred_digits=2))
    with pytest.raises(ValueError, match="none of 4 episodes is centred; raise data.episodes above"):
        batches(few, text_tokenizer_file, outlines=True, outline_digits=2, centred=True)


def test_as_many_questions_are_asked_as_the_recipe_says(codes: WorldCodes, text_tokenizer_file: Path) -> None:
    def longest(**data: object) -> int:
        asked = batches(codes, text_tokenizer_file, jobs={"ask": 1.0}, **data)
        asked.config = MLLMConfig(num_codebooks=2, image_size=32)
        return max(len(asked.draw_sequence(Random(n))) for n in range(10))

    assert longest(questions=1) < longest() < longest(questions=12)
    with pytest.raises(ValueError, match="questions is 0; give 1 or more"):
        WorldData(questions=0)


def test_pictures_of_scenes_have_outlines(codes: WorldCodes, text_tokenizer_file: Path) -> None:
    episode = make_episode(4)
    for job in JOBS:
        dialogue = make_dialogue(job, episode, Random(1))
        messages = to_messages(dialogue, episode, codes[4], (2, 2), outline_digits=1)
        for turn, message in zip(dialogue.turns, messages, strict=True):
            for part, encoded in zip(turn.parts, message.parts, strict=True):
                if isinstance(part, ImageRef):
                    assert encoded.plan == (outline_of(part.scene) if part.kind == "image" else None)
        assert all(
            part.plan is None
            for m in to_messages(dialogue, episode, codes[4], (2, 2))
            for part in m.parts
            if isinstance(part, CodesPart)
        )


def test_a_dropped_instruction_takes_the_outline_with_it(codes: WorldCodes, text_tokenizer_file: Path) -> None:
    tokenizer = load_text_tokenizer(text_tokenizer_file)
    vocabulary = extend_tokenizer(tokenizer, plans=True)
    sizes = {"num_codebooks": 2, "image_size": 32}
    data = batches(codes, text_tokenizer_file, outlines=True, prompt_dropout=0.5)
    data.tokenizer, data.config = tokenizer, MLLMConfig(**sizes, **vocabulary.config_fields())
    marker, has_words, has_outline = vocabulary.begin_plan_id, [], []
    for n in range(40):
        ids = data.draw_sequence(Random(n)).token_ids_T.tolist()
        has_outline.append(marker in ids)
        has_words.append("<unconditional>" not in tokenizer.decode(ids).replace(" ", ""))
    assert has_words == has_outline and 5 < sum(has_words) < 35


def test_what_is_asked_follows_the_recipes_weights(codes: WorldCodes, text_tokenizer_file: Path) -> None:
    def answers(kind: str) -> str:
        """What is learned of ten dialogues; of these pictures, which have no outlines, answers alone."""
        asked = batches(codes, text_tokenizer_file, jobs={"ask": 1.0}, question_weights={kind: 1.0})
        asked.config = MLLMConfig(num_codebooks=2, image_size=32)
        labels = [asked.draw_sequence(Random(n)).labels_T for n in range(10)]
        return asked.tokenizer.decode(np.concatenate(labels)[np.concatenate(labels) >= 0], skip_special_tokens=True)

    assert set(answers("count")) <= set("01234 ")
    assert not set(answers("background")) & set("01234")


@pytest.mark.parametrize(
    ("weights", "sentence"),
    [
        ({"counts": 1.0}, r"data.question_weights names \['counts'\]; the kinds are count, color"),
        ({"count": 0.0}, r"data.question_weights is {'count': 0.0}; give weights above 0"),
        ({}, r"data.question_weights is {}; give weights above 0"),
    ],
)
def test_weights_of_questions_that_do_not_exist_are_refused(weights: dict[str, float], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        WorldData(question_weights=weights)


def test_another_mixture_has_other_sequences_of_the_same_pictures(codes: WorldCodes, text_tokenizer_file: Path) -> None:
    def first_batch(seed: int) -> np.ndarray:
        data = batches(codes, text_tokenizer_file, jobs={"describe": 1.0}, mixture_seed=seed)
        data.config = MLLMConfig(num_codebooks=2, image_size=32)
        return data[0]["input_ids"].numpy()

    assert np.array_equal(first_batch(1), first_batch(1))
    assert not np.array_equal(first_batch(0), first_batch(1))


def test_how_scenes_are_described_follows_the_recipes_weights(codes: WorldCodes, text_tokenizer_file: Path) -> None:
    def words(weights: dict[str, float]) -> str:
        described = batches(codes, text_tokenizer_file, jobs={"draw": 1.0}, drawing_weights=weights)
        described.config = MLLMConfig(num_codebooks=2, image_size=32)
        ids = [described.draw_sequence(Random(n)).token_ids_T for n in range(40)]
        return described.tokenizer.decode([i for i in np.concatenate(ids) if i >= 0], skip_special_tokens=True)

    sizes = ("larger", "bigger", "smaller", "than")
    compared, plain = words({"comparison": 1.0}), words({"full": 1.0})
    assert sum(map(compared.count, sizes)) >= 5 + sum(map(plain.count, sizes))
    with pytest.raises(ValueError, match=r"data.drawing_weights names \['compare'\]; the kinds are full, brief"):
        WorldData(drawing_weights={"compare": 1.0})


def test_where_no_kind_of_question_fits_the_background_is_asked_for() -> None:
    scene = make_episode(0, num_objects=1).scene
    assert {propose_question(scene, Random(n), kind_weights={"relation": 1.0}).kind for n in range(9)} == {"background"}


def test_kinds_of_questions_come_as_often_as_they_weigh() -> None:
    scene = make_episode(0, num_objects=2).scene
    weights = {"count": 3.0, "color": 1.0}
    kinds = [propose_question(scene, Random(n), kind_weights=weights).kind for n in range(400)]
    assert set(kinds) == {"count", "color"} and 0.68 < kinds.count("count") / 400 < 0.82
