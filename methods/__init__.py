"""Pretraining methods: one file each, found by their decorators."""
