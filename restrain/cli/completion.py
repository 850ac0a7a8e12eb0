"""``restrain completion``: the script that teaches a shell our commands, recipes, keys and runs.

The script asks ``restrain completion words -- WORD...`` for what may stand in place of the last word. What that is
follows from the commands themselves: a parameter whose metavar says NAME takes a recipe, RUN or DIR a run folder,
KEY=VALUE an override. So a new command is completed without a line here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

BASH = r"""_restrain() {
    local line="${COMP_LINE:0:COMP_POINT}" word before=""
    local -a words
    read -ra words <<< "$line"
    [[ "$line" == *[[:space:]] ]] && words+=("")
    word="${words[${#words[@]}-1]}"
    # Where bash takes = for the end of a word, it wants only what follows it.
    [[ "$word" == *=* && "$COMP_WORDBREAKS" == *=* ]] && before="${word%"${word##*=}"}"
    local IFS=$'\n'
    COMPREPLY=($(restrain completion words -- "${words[@]:1}" 2>/dev/null))
    COMPREPLY=("${COMPREPLY[@]#"$before"}")
    if [[ ${#COMPREPLY[@]} -eq 1 && "${COMPREPLY[0]}" == *[=/] ]]; then compopt -o nospace 2>/dev/null; fi
}
complete -o default -F _restrain restrain
"""

ZSH = r"""#compdef restrain
_restrain() {
    local -a found
    found=(${(f)"$(restrain completion words -- "${(@)words[2,CURRENT]}" 2>/dev/null)"})
    if (( ${#found} == 0 )); then
        _files
        return
    fi
    compadd -Q -- ${found:#*[=/]}
    compadd -Q -S '' -- ${(M)found:#*[=/]}
}
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit; }
compdef _restrain restrain
"""

FISH = r"""function __restrain_words
    set -l words (commandline -opc) (commandline -ct)
    restrain completion words -- $words[2..-1] 2>/dev/null
end
complete -c restrain -a '(__restrain_words)'
"""

# Another shell is a line here. ``words`` is what the scripts ask for.
SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}


def completion(
    shell: Annotated[str, typer.Argument(metavar="SHELL", help=f"One of {', '.join(SCRIPTS)}.")],
    words: Annotated[list[str] | None, typer.Argument(metavar="[WORD]...", hidden=True)] = None,
) -> None:
    """Print the script that completes commands, recipes, keys, values and run folders.

    bash: eval "$(restrain completion bash)" in ~/.bashrc; zsh: the same in ~/.zshrc with zsh; fish: restrain completion
    fish > ~/.config/fish/completions/restrain.fish.
    """
    from restrain.errors import UserError, nearest

    if shell == "words":
        for found in answers(words or [""]):
            typer.echo(found)
        return
    if shell not in SCRIPTS:
        raise UserError(
            f"There is no completion for {shell!r}, only for {', '.join(SCRIPTS)}.{nearest(shell, SCRIPTS)}"
        )
    if words:
        raise UserError(f"restrain completion {shell} takes nothing more, not {' '.join(words)!r}.")
    typer.echo(SCRIPTS[shell], nl=False)


def answers(words: list[str]) -> list[str]:
    """What may stand for the last of the words behind ``restrain``; nothing where a file may, or nothing can."""
    from restrain.cli.main import app

    *before, word = words
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands"):
        if not before:
            return _fitting(word, [*command.commands, "--help"])
        command = command.commands.get(before.pop(0))
    if command is None:
        return []
    options = {flag: one for one in command.params if one.param_type_name == "option" for flag in one.opts}
    given, waiting = _given(before, options)
    if word.startswith("-") and waiting is None:
        return _fitting(word, [*options, "--help"])
    places = [one for one in command.params if one.param_type_name == "argument"]
    place = waiting or (places[min(len(given), len(places) - 1)] if places else None)
    if place is None or (len(given) >= len(places) and waiting is None and place.nargs == 1):
        return []
    return _for(place.metavar or "", word, given, [one.metavar or "" for one in places])


def _given(before: list[str], options: dict[str, Any]) -> tuple[list[str], Any]:
    """The arguments among the words, and the option that waits for its value, if the last one does."""
    given, waiting = [], None
    for one in before:
        if waiting is not None:
            waiting = None
        elif one.startswith("-"):
            option = options.get(one)
            waiting = option if option is not None and not option.is_flag else None
        else:
            given.append(one)
    return given, waiting


def _for(metavar: str, word: str, given: list[str], metavars: list[str]) -> list[str]:
    """The words for a place: its metavar says of which kind."""
    if "KEY" in metavar:
        named = [one for one, kind in zip(given, metavars, strict=False) if "NAME" in kind or "DIR" in kind]
        return _overrides(word, named, with_value="=" in metavar)
    found = []
    if "NAME" in metavar:
        from restrain.recipe.loading import available

        found = _fitting(word, available())
    if "RUN" in metavar or "DIR" in metavar:
        found += _folders(word)
    return found + (_fitting(word, list(SCRIPTS)) if metavar == "SHELL" else [])


def _fitting(word: str, choices: list[str]) -> list[str]:
    return [choice for choice in choices if choice.startswith(word)]


def _folders(word: str) -> list[str]:
    """Run folders that begin with the word, and the folders on the way to them; without a word those below runs/."""
    pattern = f"{word}*" if word else "runs/*/*"
    found = []
    for path in sorted(Path().glob(pattern) if not word.startswith("/") else Path("/").glob(pattern[1:])):
        if (path / "recipe.lock.yaml").is_file():
            found.append(str(path))
        elif word and path.is_dir() and not path.name.startswith("."):
            found.append(f"{path}/")
    return found


def _overrides(word: str, named: list[str], with_value: bool) -> list[str]:
    """Keys that begin with the word, or behind ``=`` the values that a key can have where they are few."""
    from restrain.cli.named import resolve
    from restrain.errors import RestrainError
    from restrain.recipe import load
    from restrain.recipe.explain import choices, possible_keys

    try:
        recipe = resolve(named[0])[0].recipe if named else load("digits_resnet20").recipe
    except RestrainError:
        return []
    key, equals, begun = word.partition("=")
    if equals:
        return [f"{key}={one}" for one in choices(recipe, key) if one.startswith(begun)] if with_value else []
    keys = possible_keys(recipe)
    if not with_value:
        return _fitting(word, keys)
    sections = {one.rpartition(".")[0] for one in keys}
    return [f"{one}=" for one in keys if one.startswith(word) and one not in sections]
