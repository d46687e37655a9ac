"""What a job is told, in words: the grammar of optimizers and schedules as text, and all settings as one value."""
