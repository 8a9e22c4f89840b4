"""Score a finished run against a manifest with ground truth, by the GroundMoRe protocol."""

from gmcli.evaluate.answers import answer_accuracy, normalise_answer
from gmcli.evaluate.protocol import FPS, SAMPLES, Score, score_question, score_uniform, window_frames
from gmcli.evaluate.scoring import draw_object, evaluate
from gmcli.evaluate.summary import METRICS, interval95

__all__ = [
    "FPS",
    "METRICS",
    "SAMPLES",
    "Score",
    "answer_accuracy",
    "draw_object",
    "evaluate",
    "interval95",
    "normalise_answer",
    "score_question",
    "score_uniform",
    "window_frames",
]
