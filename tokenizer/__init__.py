"""UniTok: images to discrete codes and back. Knows nothing of language models."""
