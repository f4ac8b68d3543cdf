"""Ties to the frameworks that run denoisers."""
