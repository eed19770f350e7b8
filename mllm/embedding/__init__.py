"""Image codes to vectors of the backbone."""
