"""Downstream tasks and the corpora one pretrains on for them: one file per dataset, found by their decorators."""
