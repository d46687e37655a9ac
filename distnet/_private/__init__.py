"""Plumbing: what several rooms need and what nobody outside this package should import."""
