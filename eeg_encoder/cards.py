"""The card of an encoder or pipeline folder: what it is, made of what, how it was judged."""

from __future__ import annotations

from typing import Any

CAVEAT = (
    "Figures are those of the protocol named above, on its data; nothing is known of other people, "
    "recordings or pictures."
)


def stage_card(stage: str, config: dict[str, Any]) -> str:
    """Markdown from a folder's ``config.json`` content.

    Parameters
    ----------
    stage
        The command that wrote the folder.
    config
        With ``model``, ``protocol``, ``training`` and, where there was validation, ``validation``.
    """
    training = dict(config["training"])
    lines = [
        f"# EEG encoder: {stage}",
        "",
        f"Written by `eeg-encoder {stage}`.",
        "",
        f"- model: `{config['model']['name']}`, {training.pop('parameters'):,} parameters",
        f"- stages so far: {', '.join(config['trained'])}",
        f"- base model: {config.get('base_model') or 'none'}",
        f"- data: `{config['recording']}`, {config['protocol']}",
        f"- training: {training}",
        f"- validation: {config.get('validation') or 'none'}",
        "",
        CAVEAT,
        "",
    ]
    return "\n".join(lines)
