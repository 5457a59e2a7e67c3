"""Find the few weights that carry a skill, and the file they travel in."""
