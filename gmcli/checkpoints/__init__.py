"""Find, check, load and convert checkpoints; foreign and own ones."""
