"""Plug-ins that let the evaluation harnesses of others run our models; each is loaded by its harness."""
