"""Everything that learns: recipes, data, the trainers of both tokenizers and of the unified model."""
