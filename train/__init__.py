"""Everything that learns: recipes, data, the trainers of the text tokenizer, the image tokenizer and the language model."""
