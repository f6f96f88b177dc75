from __future__ import annotations

import pytest

from qmop.tiny.configs import language_config, query_config
from qmop.tiny.tokenizer import ASSISTANT, BOS, EOS, IMAGE, PAD, SPECIAL, UNK, USER, language_tokenizer, query_tokenizer
from qmop.vtcbench.dimensions import FAMILIES
from qmop.vtcbench.rendered import suite, training_scene
from qmop.vtcbench.words import COLOURS, DETAILS, INKS, KINDS, MOODS, PLACES, SIDES, TEXTURES

WORDS = language_tokenizer()
QUERIES = query_tokenizer()


def test_the_end_token_is_not_the_one_that_clip_pools_wrongly() -> None:
    assert WORDS.eos_token_id == QUERIES.eos_token_id == 3
    assert query_config(QUERIES).eos_token_id == language_config(WORDS).eos_token_id == 3


def test_special_tokens_have_the_first_ids_and_are_one_token_each() -> None:
    assert WORDS.convert_tokens_to_ids(list(SPECIAL)) == list(range(7))
    assert WORDS("".join(SPECIAL))["input_ids"] == list(range(7))
    assert (WORDS.pad_token, WORDS.bos_token, WORDS.unk_token, WORDS.eos_token) == (PAD, BOS, UNK, EOS)


@pytest.mark.parametrize(
    "word", sorted({*KINDS, *COLOURS, *DETAILS, *INKS, *MOODS, *TEXTURES, *SIDES, *" ".join(PLACES).split()})
)
def test_a_word_of_the_world_is_one_token(word: str) -> None:
    assert WORDS.tokenize(word) == [word]
    assert WORDS.tokenize(word.capitalize()) == [word]


def test_every_answer_and_question_of_the_suite_is_made_of_whole_words() -> None:
    texts = [rendered.item.question for rendered in suite(3, 10 * len(FAMILIES))]
    texts += [answer for family in FAMILIES for answer in family.answers]
    texts += [training_scene(3, place).caption for place in range(40)]
    pieces = {piece for text in texts for piece in WORDS.tokenize(text)}
    assert [piece for piece in pieces if piece.startswith("##")] == []
    assert UNK not in pieces


@pytest.mark.parametrize("text", ["zebra", "Zoë's naïve café?", "x=3*(y+2)", "a_b c-d", "q" * 150])
def test_other_text_falls_into_characters_and_loses_nothing(text: str) -> None:
    pieces = WORDS.tokenize(text)
    assert UNK not in pieces
    assert "".join(piece.removeprefix("##") for piece in pieces) == (
        text.lower().replace(" ", "").replace("ë", "e").replace("ï", "i").replace("é", "e")
    )


@pytest.mark.parametrize("text", ["how many red circles are there ?", "the zebra is top left .", "yes", "x y 7"])
def test_text_comes_back(text: str) -> None:
    ids = WORDS(text)["input_ids"]
    assert WORDS.decode(ids) == text
    assert WORDS.decode(WORDS(f"{text} {EOS}")["input_ids"], skip_special_tokens=True).strip() == text


def test_the_language_tokenizer_adds_nothing_and_pads_left() -> None:
    assert WORDS("red")["input_ids"] == [WORDS.convert_tokens_to_ids("red")]
    assert WORDS(["red", "red red"], padding=True)["input_ids"][0][0] == WORDS.pad_token_id


def test_the_query_tokenizer_frames_cuts_and_pads_right() -> None:
    red = QUERIES.convert_tokens_to_ids("red")
    assert QUERIES("red")["input_ids"] == [QUERIES.bos_token_id, red, 3]
    assert QUERIES(["red", "red red"], padding=True)["input_ids"][0] == [QUERIES.bos_token_id, red, 3, 0]
    long = QUERIES("red " * 200, truncation=True)["input_ids"]
    assert len(long) == 77
    assert (long[0], long[-1]) == (QUERIES.bos_token_id, 3)


def test_both_tokenizers_share_one_vocabulary() -> None:
    assert WORDS.get_vocab() == QUERIES.get_vocab()
    assert len(WORDS) == len(set(WORDS.get_vocab().values()))


def test_a_conversation_becomes_this_text() -> None:
    turns = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "is it red ?"}]},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "and blue ?"},
    ]
    text = WORDS.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert text == f"{BOS}{USER}{IMAGE} is it red ? {ASSISTANT} yes {EOS}{USER} and blue ? {ASSISTANT}"
    assert WORDS.apply_chat_template(turns[:1], tokenize=False) == f"{BOS}{USER}{IMAGE} is it red ? "
