"""The verbs of the command line: one module per verb, each a `main(argv) -> int` that parses, calls and prints."""
