"""Starting jobs: child processes, run folders, the live display, and training from one configuration."""
