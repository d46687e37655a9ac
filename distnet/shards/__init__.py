"""Where a shard of a server lives: in this process, or in a process of its own. ``settings`` is what it is told."""
