"""EEG simulated from the embeddings of the pictures shown.

Dipoles in a spherical head carry four evoked components (P1, N1, P2, P3). Their amplitudes are an
average response plus a linear read-out of the picture's embedding; the share that carries fine
detail falls with latency. On top: 1/f background from many sources, alpha, sensor noise, slow
drift, latency jitter, gains by session, and the responses to the pictures before and after.

A figure obtained from such trials verifies software. It is no evidence about brains.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..files import whole_file
from .forward_model import HeadModel, head_model
from .trials import TrialSet

CHUNK = 512
DRIFT_TAG, NOISE_TAG, ORDER_TAG, SUBJECT_TAG, SHARED_TAG = range(5)


@dataclass(frozen=True)
class Component:
    """An evoked component: latency and width in seconds, sources around ``centre`` (metres).

    ``detail`` is the share of its stimulus-specific power that carries the trailing, low-level half
    of the stimulus code.
    """

    name: str
    latency: float
    width: float
    polarity: float
    centre: tuple[float, float, float]
    mirrored: float
    detail: float


COMPONENTS = (
    Component("P1", 0.100, 0.018, 1.0, (0.025, -0.065, 0.005), 0.5, 0.85),
    Component("N1", 0.170, 0.020, -1.0, (0.050, -0.045, -0.015), 0.3, 0.50),
    Component("P2", 0.240, 0.030, 1.0, (0.040, -0.040, 0.020), 0.5, 0.25),
    Component("P3", 0.380, 0.070, 1.0, (0.010, -0.030, 0.060), 0.5, 0.10),
)


@dataclass
class SimulationConfig:
    """Knobs of the simulator.

    Parameters
    ----------
    channels
        Electrodes: a BioSemi montage of this size.
    sfreq, duration
        Hertz and seconds.
    snr_db
        Single-trial discriminative signal-to-noise ratio: the power of the noiseless response at
        nominal latency *minus its mean over stimuli*, over the power of background, alpha and
        sensor noise; both averaged over channels and samples of the whole epoch, without filtering.
        Drift, jitter, session gain and neighbours are not counted. Averaging n trials adds
        10 log10(n) dB.
    snr_spread_db
        Standard deviation of that figure over subjects.
    repetitions, held_out_repetitions
        Presentations of a training and of a held-out stimulus to each subject.
    subjects, sessions
        How many. Repetitions are dealt to the sessions in turn.
    order
        ``rapid``: random order. ``block``: all pictures of a category in a row.
    block_length
        Trials of a block in rapid order.
    noise_uv
        Standard deviation of background, alpha and sensor noise together, microvolts.
    evoked_uv
        Peak of the average evoked response, microvolts.
    background_sources, background_exponent
        Dipoles with power falling as 1/f to this exponent.
    alpha, sensor
        Amplitude of alpha and of sensor noise, relative to the background's.
    drift
        Step of each electrode's random walk from trial to trial, in units of ``noise_uv``.
    jitter
        Standard deviation of the latency over trials, seconds.
    subject_latency
        Standard deviation of the latency over subjects, seconds.
    subject_topography
        Share of each source's orientation and read-out that belongs to the subject alone, 0 to 1.
    session_gain
        Standard deviation of the log gain over sessions.
    soa
        Seconds from one onset to the next.
    overlap
        Gain of the neighbours' responses, 0 for none.
    signal
        False: trials of noise and drift only, the control for leaking splits.
    seed
        Of everything random. The head, the components and the subjects do not depend on the device;
        the noise does.
    """

    channels: int = 128
    sfreq: float = 1000.0
    duration: float = 0.5
    snr_db: float = -26.0
    snr_spread_db: float = 0.0
    repetitions: int = 4
    held_out_repetitions: int = 16
    subjects: int = 2
    sessions: int = 2
    order: str = "rapid"
    block_length: int = 50
    noise_uv: float = 8.0
    evoked_uv: float = 5.0
    background_sources: int = 40
    background_exponent: float = 1.2
    alpha: float = 0.6
    sensor: float = 0.25
    drift: float = 0.03
    jitter: float = 0.012
    subject_latency: float = 0.010
    subject_topography: float = 0.3
    session_gain: float = 0.1
    soa: float = 0.5
    overlap: float = 1.0
    signal: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.order not in ("rapid", "block"):
            raise InputError("simulation", "order", self.order, "rapid or block")
        for name in ("repetitions", "held_out_repetitions", "subjects", "sessions", "block_length"):
            if getattr(self, name) < 1:
                raise InputError("simulation", name, getattr(self, name), "1 or more")
        if self.background_sources < 30:
            raise InputError("simulation", "background_sources", self.background_sources, ">= 30")
        if not 0 <= self.subject_topography <= 1:
            raise InputError("simulation", "subject_topography", self.subject_topography, "0 to 1")

    @property
    def samples(self) -> int:
        """Samples of a trial."""
        return round(self.sfreq * self.duration)


@dataclass
class StimulusCode:
    """Centred, partly whitened principal components of the stimulus embeddings.

    Fitted once on a set of stimuli and kept, so that other stimuli reach the same simulated brain.

    Parameters
    ----------
    mean
        (P,)
    basis
        (P, K), code = (embedding - mean) @ basis; variance falls from the first column to the last.
    deviation
        (K,) standard deviation of the code over the stimuli it was fitted on; mean square 1.
    """

    mean: Tensor
    basis: Tensor
    deviation: Tensor

    @classmethod
    def fit(cls, embeddings: Tensor, *, dims: int = 48, whitening: float = 0.5) -> StimulusCode:
        """Fit on (S, P) embeddings.

        Parameters
        ----------
        dims
            Components kept (fewer when the embeddings have a lower rank).
        whitening
            0 keeps the variances of the components, 1 makes them equal.

        Raises
        ------
        InputError
            When there are fewer than two different stimuli or a value is not finite.
        """
        embeddings = torch.as_tensor(embeddings).detach().cpu().double()
        if embeddings.ndim != 2 or not bool(embeddings.isfinite().all()):
            raise InputError("simulation", "embeddings", "NaN or a bad shape", "finite (S, P)")
        mean = embeddings.mean(0)
        _, values, rows = torch.linalg.svd(embeddings - mean, full_matrices=False)
        variance = values**2 / len(embeddings)
        rank = int((variance > variance[0] * 1e-8).sum()) if float(variance[0]) > 0 else 0
        if rank == 0:
            raise InputError("simulation", "embeddings", "one stimulus", "2 or more different ones")
        kept = min(dims, rank)
        signs = torch.sign(rows.gather(1, rows.abs().argmax(1, keepdim=True)))
        basis = (rows * signs)[:kept].T * variance[:kept] ** (-whitening / 2)
        deviation = variance[:kept] ** ((1 - whitening) / 2)
        scale = float((deviation**2).mean()) ** 0.5
        return cls(mean.float(), (basis / scale).float(), (deviation / scale).float())

    def __call__(self, embeddings: Tensor) -> Tensor:
        """Code (S, K) of (S, P) embeddings."""
        return (torch.as_tensor(embeddings).detach().cpu().float() - self.mean) @ self.basis

    def save(self, path: str | Path) -> None:
        """Write as safetensors."""
        from safetensors.torch import save

        content = {"mean": self.mean, "basis": self.basis, "deviation": self.deviation}
        with whole_file(path) as temporary:
            temporary.write_bytes(save({k: v.contiguous() for k, v in content.items()}))

    @classmethod
    def load(cls, path: str | Path) -> StimulusCode:
        """Read what :meth:`save` wrote.

        Raises
        ------
        InputError
            When the file is missing or is not a stimulus code.
        """
        from safetensors.torch import load_file

        try:
            return cls(**load_file(str(path)))
        except Exception as error:
            reason = str(error).splitlines()[0]
            raise InputError(path, "file", reason, "a stimulus code (safetensors)") from error


class Subject:
    """One simulated head: sources, read-outs, latencies and gains.

    A pure function of the configuration, the stimulus code and the subject's number.
    """

    def __init__(self, config: SimulationConfig, code: StimulusCode, number: int) -> None:
        self.config = config
        head = head_model(config.channels)
        shared = np.random.default_rng([config.seed, SHARED_TAG])
        own = np.random.default_rng([config.seed, SUBJECT_TAG, number])
        patterns, mean, readout, latency, width = _evoked_sources(head, config, code, shared, own)
        shift = own.normal(0.0, config.subject_latency)
        snr_db = config.snr_db + own.normal(0.0, 1.0) * config.snr_spread_db
        self.patterns = torch.from_numpy(patterns).float()
        self.latency = torch.from_numpy(latency + shift).float()
        self.width = torch.from_numpy(width).float()
        curves = self.curves(torch.zeros(1))[0].double()
        mean_response = torch.from_numpy(patterns * mean) @ curves
        peak = float(mean_response.abs().max())
        self.mean = torch.from_numpy(mean * config.evoked_uv * 1e-6 / peak).float()
        specific = _specific_power(torch.from_numpy(patterns), curves, readout, code.deviation)
        noise_power = (config.noise_uv * 1e-6) ** 2
        gain = math.sqrt(noise_power * 10 ** (snr_db / 10) / specific)
        self.readout = torch.from_numpy(readout * gain).float()
        self.background, self.alpha, self.scales = _noise_sources(head, config, own)

    def curves(self, shift: Tensor, onset: float = 0.0) -> Tensor:
        """Time courses (B, sources, T) of the sources for latency shifts (B,) in seconds."""
        config = self.config
        time = torch.arange(config.samples, device=shift.device) / config.sfreq
        centre = self.latency.to(shift) + shift[:, None] + onset
        width = self.width.to(shift)
        return torch.exp(-0.5 * ((time - centre[..., None]) / width[:, None]) ** 2)

    def amplitudes(self, code: Tensor) -> Tensor:
        """Source amplitudes (S, sources) for a stimulus code (S, K)."""
        return self.mean.to(code) + code @ self.readout.to(code).T

    def response(self, code: Tensor) -> Tensor:
        """Noiseless responses (S, C, T) in volts at nominal latency."""
        curves = self.curves(torch.zeros(1, device=code.device))
        return torch.matmul(self.patterns.to(code), self.amplitudes(code)[..., None] * curves)

    def noise(self, n: int, generator: torch.Generator) -> Tensor:
        """Background, alpha and sensor noise (n, C, T) in volts, on the generator's device."""
        config, device = self.config, generator.device
        background = _one_over_f(n, len(self.background[0]), config, generator)
        alpha = _alpha(n, len(self.alpha[0]), config, generator)
        white = torch.randn(n, config.channels, config.samples, device=device, generator=generator)
        mixing = torch.cat([self.background, self.alpha], dim=1).to(device)
        return torch.matmul(mixing, torch.cat([background, alpha], dim=1)) + self.scales * white


def simulate(
    embeddings: Tensor | np.ndarray,
    labels: Sequence[int] | np.ndarray,
    label_names: Sequence[str],
    stimulus_ids: Sequence[str],
    *,
    config: SimulationConfig | None = None,
    held_out: np.ndarray | None = None,
    code: StimulusCode | None = None,
    device: str | torch.device = "cpu",
) -> TrialSet:
    """Simulate a recording.

    Parameters
    ----------
    embeddings
        (S, P) embedding of each stimulus.
    labels
        (S,) category of each stimulus, index into ``label_names``.
    label_names
        Category names.
    stimulus_ids
        S picture ids.
    config
        Knobs.
    held_out
        (S,) bool: stimuli shown ``held_out_repetitions`` times instead of ``repetitions``.
    code
        Stimulus code of an earlier simulation, to reach the same brains with other stimuli.
        Default: fitted on ``embeddings``.
    device
        Where to compute.

    Returns
    -------
    TrialSet
        Volts, in the order of presentation, subject by subject and session by session.

    Raises
    ------
    InputError
        When the lengths disagree or a value is not finite.
    """
    config = config or SimulationConfig()
    embeddings = torch.as_tensor(embeddings).float()
    labels = np.asarray(labels, dtype=np.int64)
    for name, value in (("labels", labels), ("stimulus_ids", stimulus_ids)):
        if len(value) != len(embeddings):
            expected = f"{len(embeddings)}, one a stimulus"
            raise InputError("simulation", name, f"{len(value)} entries", expected)
    code = code or StimulusCode.fit(embeddings)
    held_out = np.zeros(len(labels), bool) if held_out is None else np.asarray(held_out, bool)
    counts = np.where(held_out, config.held_out_repetitions, config.repetitions)
    stimulus_code = code(embeddings).to(device)

    total = config.subjects * int(counts.sum())
    signals = np.empty((total, config.channels, config.samples), dtype=np.float32)
    shown: list[np.ndarray] = []
    keys: list[tuple[int, int, np.ndarray]] = []
    row = 0
    for number in range(1, config.subjects + 1):
        subject = Subject(config, code, number)
        for session in range(config.sessions):
            sequence, blocks = _presentation(config, labels, counts, number, session)
            for part in _session(config, subject, stimulus_code, sequence, number, session):
                signals[row : row + len(part)] = part.cpu().numpy()
                row += len(part)
            shown.append(sequence)
            keys.append((number, session, blocks))
    order = np.concatenate(shown)
    return TrialSet(
        signals=signals,
        sfreq=config.sfreq,
        channels=list(head_model(config.channels).channels),
        labels=labels[order],
        label_names=list(label_names),
        stimuli=np.asarray(stimulus_ids)[order],
        subjects=np.concatenate([np.full(len(b), n, np.int64) for n, _, b in keys]),
        sessions=np.concatenate([np.full(len(b), s, np.int64) for _, s, b in keys]),
        blocks=np.concatenate([b for _, _, b in keys]),
    )


def simulation_record(config: SimulationConfig) -> dict[str, Any]:
    """What a result file says about a simulated recording."""
    return {"simulated": True, **asdict(config)}


def _session(
    config: SimulationConfig,
    subject: Subject,
    code: Tensor,
    sequence: np.ndarray,
    number: int,
    session: int,
) -> Iterator[Tensor]:
    device = code.device
    seed = np.random.SeedSequence([config.seed, NOISE_TAG, number, session]).generate_state(1)[0]
    generator = torch.Generator(device).manual_seed(int(seed))
    drift_rng = np.random.default_rng([config.seed, DRIFT_TAG, number, session])
    steps = drift_rng.standard_normal((len(sequence), config.channels), dtype=np.float32)
    offsets = np.cumsum(steps, axis=0) * np.float32(config.drift * config.noise_uv * 1e-6)
    gain = float(np.exp(drift_rng.normal(0.0, config.session_gain)))
    amplitudes = subject.amplitudes(code)
    shifts = config.jitter * torch.randn(len(sequence), device=device, generator=generator)
    sequence_on_device = torch.from_numpy(sequence).to(device)
    patterns = subject.patterns.to(device)
    for start in range(0, len(sequence), CHUNK):
        here = torch.arange(start, min(start + CHUNK, len(sequence)), device=device)
        signal = subject.noise(len(here), generator)
        if config.signal:
            activity = _activity(config, subject, amplitudes, sequence_on_device, shifts, here)
            signal = signal + torch.matmul(patterns, activity)
        offset = torch.from_numpy(offsets[start : start + len(here)]).to(device)
        yield gain * signal + offset[..., None]


def _activity(
    config: SimulationConfig,
    subject: Subject,
    amplitudes: Tensor,
    sequence: Tensor,
    shifts: Tensor,
    here: Tensor,
) -> Tensor:
    activity = amplitudes[sequence[here]][..., None] * subject.curves(shifts[here])
    if config.overlap == 0:
        return activity
    for step in (-1, 1):
        other = here + step
        inside = (other >= 0) & (other < len(sequence))
        other = other.clamp(0, len(sequence) - 1)
        curves = subject.curves(shifts[other], onset=step * config.soa)
        weight = config.overlap * inside[:, None] * amplitudes[sequence[other]]
        activity = activity + weight[..., None] * curves
    return activity


def _presentation(
    config: SimulationConfig, labels: np.ndarray, counts: np.ndarray, subject: int, session: int
) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng([config.seed, ORDER_TAG, subject, session])
    times = (counts - session + config.sessions - 1) // config.sessions
    sequence = generator.permutation(np.repeat(np.arange(len(counts)), times))
    if config.order == "rapid":
        return sequence, np.arange(len(sequence)) // config.block_length
    rank = generator.permutation(int(labels.max()) + 1)
    blocks = rank[labels[sequence]]
    order = np.argsort(blocks, kind="stable")
    return sequence[order], blocks[order].astype(np.int64)


def _evoked_sources(
    head: HeadModel,
    config: SimulationConfig,
    code: StimulusCode,
    shared: np.random.Generator,
    own: np.random.Generator,
    per_component: int = 12,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    patterns, means, readouts, latencies, widths = [], [], [], [], []
    dims = len(code.deviation)
    leading = np.arange(dims) < (dims + 1) // 2
    mix, keep = config.subject_topography, math.sqrt(1 - config.subject_topography**2)
    for component in COMPONENTS:
        site = _sites(head, component, per_component, shared)
        radial = head.sources[site] / np.linalg.norm(head.sources[site], axis=1, keepdims=True)
        tilt = keep * shared.normal(size=radial.shape) + mix * own.normal(size=radial.shape)
        direction = radial + 0.7 * tilt
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        patterns.append(np.einsum("csx,sx->cs", head.gain[:, site], direction))
        means.append(component.polarity * np.abs(1 + 0.3 * shared.normal(size=per_component)))
        share = np.where(leading, 1 - component.detail, component.detail)
        weight = np.sqrt(share / (np.where(leading, leading.sum(), max(1, (~leading).sum()))))
        size = (per_component, dims)
        readout = (keep * shared.normal(size=size) + mix * own.normal(size=size)) * weight
        readouts.append(readout / np.linalg.norm(patterns[-1], axis=0)[:, None])
        latencies.append(
            component.latency + 0.5 * component.width * shared.normal(size=per_component)
        )
        widths.append(component.width * np.exp(0.2 * shared.normal(size=per_component)))
    return (
        np.concatenate(patterns, axis=1),
        np.concatenate(means),
        np.concatenate(readouts),
        np.concatenate(latencies),
        np.concatenate(widths),
    )


def _sites(
    head: HeadModel, component: Component, n: int, generator: np.random.Generator, spread=0.018
) -> np.ndarray:
    centre = np.tile(component.centre, (n, 1))
    centre[generator.random(n) < component.mirrored, 0] *= -1
    wanted = centre + spread * generator.normal(size=(n, 3))
    distance = np.linalg.norm(head.sources[None] - wanted[:, None], axis=2)
    return distance.argmin(axis=1)


def _specific_power(
    patterns: Tensor, curves: Tensor, readout: np.ndarray, deviation: Tensor
) -> float:
    weights = torch.from_numpy(readout) * deviation.double()
    kernel = torch.einsum("cs,cr->sr", patterns, patterns) * (weights @ weights.T)
    power = torch.einsum("sr,st,rt->", kernel, curves, curves)
    return float(power) / (len(patterns) * curves.shape[1])


def _noise_sources(
    head: HeadModel, config: SimulationConfig, own: np.random.Generator
) -> tuple[Tensor, Tensor, float]:
    site = own.choice(len(head.sources), config.background_sources, replace=False)
    direction = own.normal(size=(len(site), 3))
    background = np.einsum("csx,sx->cs", head.gain[:, site], direction)
    background *= np.exp(0.3 * own.normal(size=len(site))) / np.linalg.norm(background, axis=0)
    wanted = np.array([[-0.02, -0.06, 0.02], [0.02, -0.06, 0.02], [0.0, -0.05, 0.04]])
    distance = np.linalg.norm(head.sources[None] - wanted[:, None], axis=2)
    occipital = distance.argmin(axis=1)
    radial = head.sources[occipital] / np.linalg.norm(head.sources[occipital], axis=1)[:, None]
    alpha = np.einsum("csx,sx->cs", head.gain[:, occipital], radial)
    background /= np.sqrt((background**2).sum() / config.channels)
    alpha *= config.alpha / np.sqrt((alpha**2).sum() / config.channels)
    scale = config.noise_uv * 1e-6 / math.sqrt(1 + config.alpha**2 + config.sensor**2)
    return (
        torch.from_numpy(background * scale).float(),
        torch.from_numpy(alpha * scale).float(),
        config.sensor * scale,
    )


def _one_over_f(
    n: int, sources: int, config: SimulationConfig, generator: torch.Generator
) -> Tensor:
    length = 2 ** math.ceil(math.log2(config.samples * 1.5))
    bins = length // 2 + 1
    frequency = torch.arange(bins, device=generator.device, dtype=torch.float32)
    amplitude = frequency.clamp_min(1.0) ** (-config.background_exponent / 2)
    amplitude[0] = 0.0
    spectrum = torch.randn(n, sources, bins, 2, device=generator.device, generator=generator)
    series = torch.fft.irfft(torch.view_as_complex(spectrum) * amplitude, n=length)
    power = 4 * (amplitude[1:-1] ** 2).sum() + amplitude[-1] ** 2
    return series[..., : config.samples] * (length / power.sqrt())


def _alpha(n: int, sources: int, config: SimulationConfig, generator: torch.Generator) -> Tensor:
    def uniform(low: float, high: float) -> Tensor:
        draw = torch.rand(n, sources, 1, device=generator.device, generator=generator)
        return low + (high - low) * draw

    time = torch.arange(config.samples, device=generator.device) / config.sfreq
    amplitude = torch.exp(
        0.5 * torch.randn(n, sources, 1, device=generator.device, generator=generator)
    )
    envelope = 1 - 0.5 * torch.exp(-0.5 * ((time - 0.4) / 0.1) ** 2)
    power = 0.5 * math.exp(0.5) * (envelope**2).mean()
    wave = torch.sin(2 * math.pi * (uniform(8.5, 11.5) * time + uniform(0.0, 1.0)))
    return amplitude * envelope * wave / power.sqrt()
