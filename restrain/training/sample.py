"""Text from a run's language model: its weights, its tokenizer, and draws from keys."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from restrain.data.text.codes import Bytes, Characters, FileTokenizer, described, named
from restrain.data.text.streaming import pieces
from restrain.errors import UserError
from restrain.models.transformers.gpt import Gpt
from restrain.models.transformers.sampling import drawn_tokens
from restrain.training.loaded import Loaded

WORTH_THREADS = 10_000_000  # parameters; of a smaller model the matrix products of one token are not worth sharing
Tokenizer = Bytes | Characters | FileTokenizer


@dataclass(frozen=True)
class Wanted:
    """``prompt``: text, or tokens. ``temperature`` 0: the likeliest token. ``top_k``: None for all."""

    prompt: str | tuple[int, ...]
    tokens: int
    temperature: float = 0.8
    top_k: int | None = 40
    seed: int = 0


def sample(loaded: Loaded, wanted: Wanted, tokenizer: str | None = None) -> Iterator[str]:
    """The prompt and what the model goes on with, piece by piece; a pure function of weights and ``wanted``.

    Text where the tokenizer is known, that of the run's data or ``tokenizer`` (bytes, or a tokenizer.json); else the
    numbers of the tokens. Raises UserError for a run of another task, a prompt that the model has no tokens for, a
    missing tokenizer.
    """
    model = _speaker(loaded)
    if sum(p.numel() for p in model.parameters()) < WORTH_THREADS:
        torch.set_num_threads(1)
    known = _tokenizer(loaded, tokenizer, isinstance(wanted.prompt, str))
    tokens = _encoded(known, wanted.prompt) if isinstance(wanted.prompt, str) else list(wanted.prompt)
    drawn = drawn_tokens(
        model,
        torch.tensor([tokens], dtype=torch.int64),
        wanted.tokens,
        temperature=wanted.temperature,
        top_k=wanted.top_k,
        seed=wanted.seed,
        known=None if known is None else known.size,
    )
    whole = chain(tokens, (int(one) for one in drawn))
    if known is not None:
        return pieces(known, whole)
    return (f" {token}" if number else str(token) for number, token in enumerate(whole))


def _speaker(loaded: Loaded) -> Gpt:
    recipe, run = loaded.recipe, loaded.located.run
    if recipe.task != "language":
        raise UserError(f"{run} has task={recipe.task}: text comes from runs of task=language.")
    if recipe.objective.name != "next_token":
        raise UserError(
            f"{run} has objective.name={recipe.objective.name}: it fills in what is masked and says no next token. "
            f"Text comes from runs of objective.name=next_token."
        )
    if not isinstance(loaded.model, Gpt):
        raise UserError(f"{run} has model.name={recipe.model.name}, and text comes from the models of gpt's family.")
    return loaded.model


def _tokenizer(loaded: Loaded, name: str | None, needed: bool) -> Tokenizer | None:
    """The tokenizer of a name, else of the run's data; None where nobody says what the tokens mean."""
    if name is not None:
        if name == "chars":
            raise UserError("--tokenizer chars: the characters of a run are those of its data, and are known without.")
        return named(name)
    told: dict[str, Any] = loaded.info.get("tokenizer") or {}
    file = Path(told.get("root", ".")) / told.get("file", "")
    if not told:
        why = "its run.json, which says what its tokens mean, is missing or damaged"
    elif told.get("name", "raw") == "raw":
        why = "the run was trained on raw tokens, and nobody says what they mean"
    elif told["name"] == "file" and not file.is_file():
        why = f"the tokenizer that the run's data were packed with, {file}, is not there"
    else:
        return described(told, told.get("root", "."))
    if needed:
        raise UserError(
            f"{loaded.located.run}: {why}. Give --tokenizer FILE (a tokenizer.json; bytes for UTF-8), or a prompt of "
            f"tokens with --prompt-tokens 464,3290."
        )
    return None


def _encoded(tokenizer: Tokenizer | None, prompt: str) -> list[int]:
    assert tokenizer is not None
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise UserError(f"--prompt {prompt!r} is no text in UTF-8. Give the prompt in UTF-8.") from None
    codes = tokenizer.encode([prompt])[0]
    if isinstance(tokenizer, Characters):
        odd = sorted(set(prompt) - set(tokenizer.vocabulary))
        if odd:
            raise UserError(
                f"--prompt has the character {odd[0]!r} (U+{ord(odd[0]):04X}), which the text that the run was trained "
                f"on never had. Its {tokenizer.size} characters are {tokenizer.vocabulary!r}."
            )
        codes = tokenizer.finish(codes)
    return codes.tolist()
