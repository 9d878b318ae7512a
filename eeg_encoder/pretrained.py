"""A trained encoder as a folder: config, weights, preprocessing, card."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import models
from .errors import InputError
from .files import whole_file, writable_folder, write_json
from .models.context_head import ContextHead, build_context_head, eeg_tokens
from .models.evidence import PictureEvidence
from .models.memory import PictureMemory
from .models.token_head import TokenHead
from .preprocessing import Preprocessing
from .recordings.trials import TrialSet

FORMAT_VERSION = 1
HUB = "hf://"
CONFIG, WEIGHTS, PREPROCESSING, CARD = (
    "config.json",
    "model.safetensors",
    "preprocessing.json",
    "card.md",
)


@dataclass
class Pretrained:
    """An encoder with everything that using it takes.

    Parameters
    ----------
    encoder
        Signals (B, C, T) and subjects (B,) to image space (B, P).
    tokens
        Image space to cross-attention tokens; None for a pipeline without an image projection.
    preprocessing
        Volts to signals.
    config
        ``model`` (name and settings), ``tokens`` (sizes), ``base_model``, ``window``,
        ``validation``, ``training``.
    weights_hash
        SHA-256 of the weights' file, empty until saved or loaded.
    memory
        Training pictures that decoded embeddings are brought back to; None leaves them as they are.
    evidence
        What the signals themselves say of the remembered pictures; with a memory only.
    context
        The encoder's tokens to cross-attention tokens, trained against a diffusion model; where
        there is one, conditioning is made by it and not by ``tokens``.
    """

    encoder: nn.Module
    tokens: TokenHead | None
    preprocessing: Preprocessing
    config: dict[str, Any] = field(default_factory=dict)
    weights_hash: str = ""
    memory: PictureMemory | None = None
    evidence: PictureEvidence | None = None
    context: ContextHead | None = None

    @torch.no_grad()
    def embed(
        self, trials: TrialSet, *, device: str | torch.device = "cpu", batch: int = 256
    ) -> Tensor:
        """Unit image-space embeddings (N, P), on the CPU.

        Raises
        ------
        InputError
            When the recording does not fit the preprocessing.
        """
        return self._regress(*self._signals(trials), device, batch)

    def _signals(self, trials: TrialSet) -> tuple[Tensor, Tensor]:
        """Preprocessed signals (N, C, T) and subjects (N,)."""
        return torch.from_numpy(self.preprocessing(trials)), torch.from_numpy(trials.subjects)

    def _regress(
        self, signals: Tensor, subjects: Tensor, device: str | torch.device, batch: int = 256
    ) -> Tensor:
        self.encoder.eval().to(device)
        parts = [
            F.normalize(self.encoder(s.to(device), n.to(device)).float(), dim=1).cpu()
            for s, n in zip(signals.split(batch), subjects.split(batch), strict=True)
        ]
        return torch.cat(parts)

    @torch.no_grad()
    def decode(
        self,
        trials: TrialSet,
        averaged: Tensor,
        *,
        device: str | torch.device = "cpu",
    ) -> Tensor:
        """Unit embeddings (N, P) for conditioning: the encoder's, then the memory's.

        Parameters
        ----------
        averaged
            (N,) how many recorded trials each of ``trials`` is the mean of.

        Raises
        ------
        InputError
            When the recording does not fit the preprocessing.
        """
        signals, subjects = self._signals(trials)
        found = self._regress(signals, subjects, device)
        return self.recall(found, self._weigh(signals, subjects, averaged))

    @torch.no_grad()
    def weigh(self, trials: TrialSet, averaged: Tensor) -> Tensor | None:
        """Log-likelihood (N, M) of every remembered picture; None without evidence."""
        if self.evidence is None or self.memory is None:
            return None
        return self._weigh(*self._signals(trials), averaged)

    def _weigh(self, signals: Tensor, subjects: Tensor, averaged: Tensor) -> Tensor | None:
        if self.evidence is None or self.memory is None:
            return None
        pictures = self.memory.pictures.cpu()
        return self.evidence.cpu()(signals, subjects, averaged.float(), pictures)

    @torch.no_grad()
    def recall(self, embeddings: Tensor, evidence: Tensor | None = None) -> Tensor:
        """Unit embeddings (N, P) after the memory, for conditioning; as given without one."""
        if self.memory is None:
            return embeddings
        return self.memory.cpu()(embeddings.float().cpu(), evidence)

    @torch.no_grad()
    def to_tokens(self, pooled: Tensor) -> Tensor:
        """Cross-attention tokens (N, L, D) of unit embeddings (N, P).

        Raises
        ------
        InputError
            When the encoder has no token head.
        """
        if self.tokens is None:
            found = f"none for {self.config.get('base_model')}"
            raise InputError("encoder", "token head", found, "one, from an image projection")
        return self.tokens.cpu()(pooled.float().cpu())

    @torch.no_grad()
    def to_context(
        self, trials: TrialSet, *, device: str | torch.device = "cpu", batch: int = 256
    ) -> Tensor:
        """Cross-attention tokens (N, L, D) of trials by the context head, on the CPU.

        Raises
        ------
        InputError
            When the encoder has no context head, or the recording does not fit.
        """
        if self.context is None:
            raise InputError("encoder", "context head", "none", "one, from eeg-encoder condition")
        signals, subjects = self._signals(trials)
        self.encoder.eval().to(device)
        self.context.eval().to(device)
        parts = [
            self.context(eeg_tokens(self.encoder, s.to(device), n.to(device))).float().cpu()
            for s, n in zip(signals.split(batch), subjects.split(batch), strict=True)
        ]
        return torch.cat(parts)

    @property
    def null_tokens(self) -> Tensor | None:
        """(L, D) of the unconditional branch, on the CPU; None without a head."""
        head = self.context or self.tokens
        return None if head is None else head.null_tokens.cpu()


def save_pretrained(folder: str | Path, pretrained: Pretrained, *, card: str = "") -> str:
    """Write an encoder folder; weights in half precision.

    ``hf://owner/name`` in place of a folder uploads it to that repository of the Hugging Face hub.

    Returns
    -------
    str
        SHA-256 of the weights' file.

    Raises
    ------
    InputError
        When the folder cannot be written or a weight is not finite.
    """
    from safetensors.torch import save

    if str(folder).startswith(HUB):
        return _upload(str(folder), pretrained, card)
    folder = writable_folder(folder)
    modules = {
        "encoder": pretrained.encoder,
        "tokens": pretrained.tokens,
        "memory": pretrained.memory,
        "evidence": pretrained.evidence,
        "context": pretrained.context,
    }
    weights = {
        f"{name}.{key}": value.detach().cpu().half().contiguous()
        for name, module in modules.items()
        if module is not None
        for key, value in module.state_dict().items()
    }
    for name, value in weights.items():
        if not bool(value.isfinite().all()):
            raise InputError(folder / WEIGHTS, name, "NaN or infinity", "finite weights")
    with whole_file(folder / WEIGHTS) as temporary:
        temporary.write_bytes(save(weights))
    memory, evidence = (
        None if part is None else part.sizes() for part in (pretrained.memory, pretrained.evidence)
    )
    context = None if pretrained.context is None else pretrained.context.settings
    sizes = {"memory": memory, "evidence": evidence, "context": context}
    write_json(folder / CONFIG, {"version": FORMAT_VERSION, **pretrained.config, **sizes})
    pretrained.preprocessing.save(folder / PREPROCESSING)
    with whole_file(folder / CARD) as temporary:
        temporary.write_text(card, encoding="utf-8")
    pretrained.weights_hash = file_hash(folder / WEIGHTS)
    return pretrained.weights_hash


def from_pretrained(folder: str | Path, *, device: str | torch.device = "cpu") -> Pretrained:
    """Read an encoder folder, as float32 networks in evaluation mode.

    Parameters
    ----------
    folder
        A folder, or ``hf://owner/name`` of the Hugging Face hub: from its cache, or downloaded
        unless ``HF_HUB_OFFLINE`` is set. A path without ``hf://`` never uses the network.

    Raises
    ------
    InputError
        When a file is missing or damaged, or the weights do not fit the config.
    """
    from safetensors.torch import load_file

    folder = _downloaded(str(folder)) if str(folder).startswith(HUB) else Path(folder)
    config = _read_config(folder / CONFIG)
    encoder = models.build(config["model"]["name"], **config["model"]["settings"])
    tokens = TokenHead(**config["tokens"]) if config.get("tokens") else None
    memory = PictureMemory(**config["memory"]) if config.get("memory") else None
    evidence = PictureEvidence(**config["evidence"]) if config.get("evidence") else None
    context = build_context_head(**config["context"]) if config.get("context") else None
    file = folder / WEIGHTS
    try:
        weights = {name: value.float() for name, value in load_file(str(file)).items()}
        _load_part(encoder, weights, "encoder.")
        if tokens is not None:
            _load_part(tokens, weights, "tokens.")
        if memory is not None:
            _load_part(memory, weights, "memory.")
        if evidence is not None:
            _load_part(evidence, weights, "evidence.")
        if context is not None:
            _load_part(context, weights, "context.")
    except Exception as error:
        reason = " ".join(str(error).split())[:160]
        raise InputError(file, "weights", reason, "the weights of config.json's model") from error
    return Pretrained(
        encoder=encoder.eval().to(device),
        tokens=None if tokens is None else tokens.eval(),
        preprocessing=Preprocessing.load(folder / PREPROCESSING),
        config={key: value for key, value in config.items() if key != "version"},
        weights_hash=file_hash(file),
        memory=memory,
        evidence=evidence,
        context=None if context is None else context.eval(),
    )


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file, as hex digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _upload(name: str, pretrained: Pretrained, card: str) -> str:
    from tempfile import TemporaryDirectory

    from huggingface_hub import HfApi

    with TemporaryDirectory() as folder:
        digest = save_pretrained(folder, pretrained, card=card)
        try:
            api = HfApi()
            api.create_repo(name.removeprefix(HUB), exist_ok=True)
            api.upload_folder(repo_id=name.removeprefix(HUB), folder_path=folder)
        except Exception as error:
            reason = " ".join(str(error).split())[:160]
            raise InputError(name, "upload", reason, "a repository that can be written") from error
    return digest


def _downloaded(name: str) -> Path:
    from huggingface_hub import snapshot_download

    files = [CONFIG, WEIGHTS, CARD, f"{Path(PREPROCESSING).stem}.*"]
    try:
        return Path(snapshot_download(name.removeprefix(HUB), allow_patterns=files))
    except Exception as error:
        reason = (" ".join(str(error).split()) or type(error).__name__)[:160]
        expected = "an encoder on the hub, or in its cache when offline"
        raise InputError(name, "repository", reason, expected) from error


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(path, "file", error, "an encoder folder's config.json") from error
    if not isinstance(config, dict) or config.get("version") != FORMAT_VERSION:
        found = config.get("version") if isinstance(config, dict) else type(config).__name__
        raise InputError(path, "version", found, FORMAT_VERSION)
    if not {"name", "settings"} <= set(config.get("model", {})):
        raise InputError(path, "model", config.get("model"), "a name and settings")
    return config


def _load_part(module: nn.Module, weights: dict[str, Tensor], prefix: str) -> None:
    module.load_state_dict(
        {n[len(prefix) :]: v for n, v in weights.items() if n.startswith(prefix)}
    )
