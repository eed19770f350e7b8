"""Sentence templates as data, one file per job. Slots in braces are filled by the job's language file."""
