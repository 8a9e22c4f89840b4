"""Run the model's components as engine recipes say."""
