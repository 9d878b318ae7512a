"""Figures about the objects: shape against the truth, agreement of views, pictures for judges."""
