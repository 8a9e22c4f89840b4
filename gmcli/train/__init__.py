"""Train: losses, the loop, its stages. Inference imports nothing from here."""
