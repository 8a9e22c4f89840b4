"""Train a small MoRA from scratch on MotionShapes, in the stages that the real one had: tower, SAM, language."""
