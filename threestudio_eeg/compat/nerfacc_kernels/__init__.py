"""nerfacc's compiled operations in plain torch, for any device, under nerfacc's names.

They answer the calls that nerfacc 0.5 makes to its ``nerfacc.cuda`` module. Source of the methods:
R. Li et al., NerfAcc, ICCV 2023.
"""

from . import grids, resampling, scans
from .segments import RaySegmentsSpec

__all__ = ["RaySegmentsSpec", "grids", "resampling", "scans"]
