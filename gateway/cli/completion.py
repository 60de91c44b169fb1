# SPDX-License-Identifier: BSD-3-Clause
"""`copygate completion SHELL`: prints what makes the shell complete our commands."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of a shell.

    \b
    bash: copygate completion bash > ~/.local/share/bash-completion/completions/copygate
    zsh:  copygate completion zsh > ~/.zfunc/_copygate
    fish: copygate completion fish > ~/.config/fish/completions/copygate.fish
    """
    maker = get_completion_class(shell)
    root = click.get_current_context().find_root().command
    if maker is None:
        raise click.UsageError(f"no completion for {shell}")
    click.echo(maker(root, {}, "copygate", "_COPYGATE_COMPLETE").source())
