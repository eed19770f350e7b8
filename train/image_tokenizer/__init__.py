"""Training the image tokenizer: its objective, the discriminator, codebooks and scores."""
