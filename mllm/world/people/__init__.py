"""Requests as people type them: what is meant first, then the words of phrases/people.yaml."""
