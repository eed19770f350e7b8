"""Decoding: `loop` schedules, `state_machine` has rules and budgets, `forward` computes, `guess` looks ahead."""
