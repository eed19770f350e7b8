"""The console command `mllm`: its verbs and their options."""
