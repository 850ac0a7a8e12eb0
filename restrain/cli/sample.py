"""``restrain sample``: text from a trained language model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Run = Annotated[Path, typer.Argument(metavar="RUN|CHECKPOINT", help="A run folder (its BEST is used) or a checkpoint.")]


def sample(
    run: Run,
    prompt: Annotated[str | None, typer.Option(help="Text to go on from; a new line when not given.")] = None,
    prompt_tokens: Annotated[
        str | None, typer.Option(metavar="N,N,...", help="Tokens to go on from, in place of text.")
    ] = None,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens to write.")] = 500,
    temperature: Annotated[float, typer.Option(help="Divides the logits; 0: always the likeliest token.")] = 0.8,
    top_k: Annotated[int, typer.Option(min=0, help="Only the likeliest are drawn from; 0: all.")] = 40,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same text.")] = 0,
    tokenizer: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="A tokenizer.json, or bytes; that of the run's data if not given."),
    ] = None,
    weights: Annotated[str, typer.Option(help="auto: the moving average where the run keeps one; ema; raw.")] = "auto",
) -> None:
    """Write text with a run's language model: the prompt and what follows."""
    from restrain.errors import UserError

    if prompt is not None and prompt_tokens is not None:
        raise UserError("--prompt and --prompt-tokens: give one of them.")
    start = _numbers(prompt_tokens) if prompt_tokens is not None else (prompt if prompt is not None else "\n")
    from restrain.training.loaded import load_weights
    from restrain.training.sample import Wanted
    from restrain.training.sample import sample as sampled

    loaded = load_weights(run, weights)
    for notice in loaded.located.notices:
        typer.echo(notice, err=True)
    for piece in sampled(loaded, Wanted(start, tokens, temperature, top_k or None, seed), tokenizer):
        typer.echo(piece, nl=False)  # and flushed: the text is read while it is drawn
    typer.echo()
    typer.echo(f"{tokens} tokens, seed {seed}; {loaded.weights} of {loaded.located.checkpoint}", err=True)


def _numbers(text: str) -> tuple[int, ...]:
    from restrain.errors import UserError

    try:
        found = tuple(int(one) for one in text.replace(" ", ",").split(",") if one)
        if any(not 0 <= one < 2**31 for one in found):
            raise ValueError
        return found
    except ValueError:
        raise UserError(f"--prompt-tokens {text}: whole numbers with commas between them, such as 464,3290.") from None
