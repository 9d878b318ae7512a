"""Where electrodes are, and what would have been measured elsewhere."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..errors import InputError
from ..recordings.positions import montage_positions


def electrode_places(names: Sequence[str], montage: str) -> np.ndarray:
    """Places (C, 3) of electrodes on the unit sphere: x right, y front, z up.

    Parameters
    ----------
    names
        Channel names, compared without regard to case.
    montage
        Name of a standard montage of MNE (``standard_1005``, ``biosemi128``, ...).

    Raises
    ------
    InputError
        When the montage or a channel is not known.
    """
    places = montage_places(montage)
    known = {name.upper(): place for name, place in places.items()}
    absent = [name for name in names if name.upper() not in known]
    if absent:
        raise InputError("preprocessing", f"channels in {montage}", absent[:5], "known electrodes")
    return np.stack([known[name.upper()] for name in names])


def montage_places(montage: str) -> dict[str, np.ndarray]:
    """Places of all electrodes of a standard montage of MNE, on the unit sphere.

    The sphere is fitted by least squares to the electrodes at and above the ears.
    """
    found = montage_positions(montage)
    xyz = np.stack(list(found.values()))
    centred = xyz - _sphere_centre(xyz)
    unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    return dict(zip(found, unit, strict=True))


def spline_matrix(
    source: np.ndarray, target: np.ndarray, *, stiffness: int = 4, regularisation: float = 1e-5
) -> np.ndarray:
    """Spherical-spline interpolation (target, source) of potentials between places on the sphere.

    With g(x) = sum_n (2n + 1) / (n (n + 1))^m P_n(x) / (4 pi), the spline through potentials v at
    the sources is u(t) = c_0 + sum_j c_j g(t . s_j), where [G + lambda I, 1; 1^T, 0] [c; c_0] =
    [v; 0].

    Parameters
    ----------
    source, target
        (C, 3) and (C', 3) on the unit sphere.
    stiffness
        m
    regularisation
        lambda

    Returns
    -------
    ndarray
        (C', C) float64; rows sum to one.

    References
    ----------
    Perrin et al., "Spherical splines for scalp potential and current density mapping",
    Electroencephalography and Clinical Neurophysiology 1989.
    """
    n = len(source)
    system = np.ones((n + 1, n + 1))
    system[:n, :n] = _spline_kernel(source @ source.T, stiffness) + regularisation * np.eye(n)
    system[n, n] = 0.0
    basis = np.concatenate(
        [_spline_kernel(target @ source.T, stiffness), np.ones((len(target), 1))], axis=1
    )
    return (basis @ np.linalg.pinv(system))[:, :n]


def _spline_kernel(cosine: np.ndarray, stiffness: int, terms: int = 50) -> np.ndarray:
    order = np.arange(1, terms + 1)
    factors = (2 * order + 1) / ((order * (order + 1.0)) ** stiffness * 4 * np.pi)
    return np.polynomial.legendre.legval(np.clip(cosine, -1, 1), np.concatenate([[0.0], factors]))


def _sphere_centre(xyz: np.ndarray) -> np.ndarray:
    system = np.concatenate([2 * xyz, np.ones((len(xyz), 1))], axis=1)
    solution, *_ = np.linalg.lstsq(system, (xyz**2).sum(axis=1), rcond=None)
    return solution[:3]
