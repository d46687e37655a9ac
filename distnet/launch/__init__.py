"""Starting a job's processes, hearing them, naming the one that fails first, and ending them in order."""
