"""Objects of known shape, their pictures, and the small prior trained on them."""
