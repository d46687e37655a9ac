"""What processes write, and where it appears: cut into lines, freed of chatter, shown with their writer's name."""
