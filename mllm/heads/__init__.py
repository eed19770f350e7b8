"""Hidden states of the backbone to the codes of an image position."""
