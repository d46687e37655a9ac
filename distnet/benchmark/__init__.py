"""Timing in turns, the limits of a machine, and what ``distnet bench`` and ``bench/`` measure with them."""
