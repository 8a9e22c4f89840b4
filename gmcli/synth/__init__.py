"""Make MotionShapes: short videos of coloured shapes, with questions that only their motion answers."""
