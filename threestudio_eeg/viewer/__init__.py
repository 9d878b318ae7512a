"""A window on the field while it trains or after: orbit it in a browser (extra ``viewer``)."""

from __future__ import annotations
