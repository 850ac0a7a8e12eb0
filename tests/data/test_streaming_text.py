"""Text in pieces: together they are the decoded whole, whatever the tokens, and none waits for the last."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from restrain.data.text.codes import Bytes, Characters, FileTokenizer
from restrain.data.text.streaming import pieces

LETTERS = Characters("abcdé ☃")
SNOWMAN = list("☃ é".encode())


@given(st.lists(st.integers(0, 6)))
def test_characters(tokens: list[int]) -> None:
    assert list(pieces(LETTERS, tokens)) == list(LETTERS.decode(np.array(tokens, np.int64)))


@given(st.lists(st.integers(0, 256) | st.sampled_from(SNOWMAN)))
def test_bytes(tokens: list[int]) -> None:
    assert "".join(pieces(Bytes(), tokens)) == Bytes().decode(np.array(tokens, np.int64))


def test_a_character_of_three_bytes_comes_whole() -> None:
    assert list(filter(None, pieces(Bytes(), SNOWMAN))) == ["☃", " ", "é"]


@pytest.fixture(params=["bytes", "words"])
def from_file(request, tmp_path) -> FileTokenizer:
    tokenizers = pytest.importorskip("tokenizers")
    if request.param == "bytes":
        made = tokenizers.Tokenizer(tokenizers.models.BPE())
        made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel()
        made.decoder = tokenizers.decoders.ByteLevel()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=280, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(), show_progress=False
        )
    else:
        made = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
        made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
        made.decoder = tokenizers.decoders.WordPiece()
        trainer = tokenizers.trainers.WordPieceTrainer(vocab_size=40, special_tokens=["[UNK]"], show_progress=False)
    made.train_from_iterator(["the snow ☃ is cold, they don't say."], trainer)
    made.save(str(tmp_path / "tokenizer.json"))
    return FileTokenizer(tmp_path / "tokenizer.json")


def test_a_tokenizer_of_a_file(from_file: FileTokenizer) -> None:
    rng = random.Random(0)
    for _ in range(20):
        tokens = [rng.randrange(from_file.size) for _ in range(60)]
        assert "".join(pieces(from_file, tokens)) == from_file.decode(np.array(tokens))
    spoken = from_file.encode(["the snow is cold, they say: the snow is cold."])[0].tolist()
    first = next(filter(None, pieces(from_file, spoken)))
    assert first.strip() == "the"
