"""Questions about pictures: file formats, prompts and scorers of the benchmarks that the UniTok/LLaVA line reports."""
