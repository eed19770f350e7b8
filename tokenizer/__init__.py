"""UniTok: pictures to discrete codes and back. Knows nothing of language models."""
