"""The tokenizer laboratory: how much an image tokenizer keeps, and how well it uses its codes."""
