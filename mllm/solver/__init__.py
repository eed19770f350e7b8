"""The parts of the inference solver: its tasks, its messages, its rows."""
