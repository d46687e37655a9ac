"""AlexNet's trainings as jobs: one configuration, its run folder, its processes, its display and its evaluation."""
